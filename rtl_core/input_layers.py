"""How word vectors enter the language model: one module for each way of using the embeddings it received."""

import torch
import torch.nn.functional as F
from torch import nn

from rtl_core.corpora.vocabulary import EOS_ID

GATE_START = (
    2.0  # a gate opens at sigmoid(2) = 0.88: rare words, whose gates hardly move, keep most of their vector
)


class InputLayer(nn.Module):
    """What all ways of entering share: the dimension of what comes out, and which words the source covers.

    `held`: covered rows that would be trained stay as they are for now. `log_factor`, where there is one, is the
    log of a trained factor of every vector.
    Shapes: covered bool (V,).
    """

    def __init__(self, dim: int, covered: torch.Tensor):
        super().__init__()
        self.dim, self.held = dim, False
        self.register_buffer("covered", covered, persistent=False)
        self.register_parameter("log_factor", None)

    def learn_size(self) -> None:
        """Adds the trained factor, positive whatever it learns, 1 at the start."""
        self.log_factor = nn.Parameter(torch.zeros(()))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns vectors. Shapes: ids (B, T) -> (B, T, dim)."""
        vectors = self.look_up(ids)
        return vectors if self.log_factor is None else vectors * self.log_factor.exp()

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the vectors before any trained factor. Shapes: ids (B, T) -> (B, T, dim)."""
        raise NotImplementedError

    def penalty(self, ids: torch.Tensor) -> torch.Tensor | float:
        """Returns what training adds to the mean nats of a batch with these inputs. Shapes: ids (B, T)."""
        return 0.0


class InputTable(InputLayer):
    """Word vectors by id. Frozen rows stay as they are; rows of words no source covers stay trainable.

    Shapes: table (V, D); covered bool (V,). `scale` multiplies what is looked up: √D where the table is
    tied to the output and stored small. `sparse`: gradients of the looked-up rows only.
    """

    def __init__(
        self,
        table: torch.Tensor,
        covered: torch.Tensor,
        frozen: bool = False,
        scale: float = 1.0,
        sparse: bool = False,
    ):
        super().__init__(table.shape[1], covered)
        self.frozen, self.scale, self.sparse = frozen, scale, sparse
        if frozen:
            rows = torch.full((len(table),), -1)
            rows[~covered] = torch.arange(int((~covered).sum()))
            self.register_buffer("fixed", table.clone())
            self.register_buffer("rows", rows)  # of the trainable part, -1 where the row is fixed
            self.weight = nn.Parameter(table[~covered].clone())
        else:
            self.weight = nn.Parameter(table.clone())

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns vectors. Shapes: ids (B, T) -> (B, T, D)."""
        if self.frozen:
            rows = self.rows[ids]
            free = F.embedding(rows.clamp(min=0), self.weight)
            return torch.where((rows >= 0)[..., None], free, self.fixed[ids]) * self.scale
        if (
            self.held
        ):  # <eos> stands in for covered words: no source covers it, and its gradient there is zero
            kept = self.covered[ids]
            free = F.embedding(ids.masked_fill(kept, EOS_ID), self.weight, sparse=self.sparse)
            vectors = torch.where(kept[..., None], self.weight.detach()[ids], free)
        else:
            vectors = F.embedding(ids, self.weight, sparse=self.sparse)
        return vectors if self.scale == 1 else vectors * self.scale


class AnchoredTable(InputTable):
    """A table that is trained, while the rows of covered words are drawn towards their start W0.

    Training adds strength · Σ ||w - w0||² to the mean nats, over the distinct covered words of the batch, at the
    size at which vectors enter the LSTM. The gradient of these rows is that of strength · ||W - W0||² over the
    whole table; the others wait until a batch touches them, so that a step costs what it touches: a word in one of
    K batches is drawn back once in K steps. A row that was never touched is at its start, where it costs nothing.

    Source: Li, Grandvalet and Davoine 2018, equation 1 (L2-SP).
    """

    def __init__(self, strength: float, table: torch.Tensor, covered: torch.Tensor, **settings):
        super().__init__(table, covered, **settings)
        self.strength = strength
        self.register_buffer("start", table.clone())

    def penalty(self, ids: torch.Tensor) -> torch.Tensor | float:
        """Returns the penalty of the words of a batch; none while the table is held. Shapes: ids (B, T)."""
        if self.held or self.strength == 0:
            return 0.0
        rows = ids[self.covered[ids]].unique()
        moved = F.embedding(rows, self.weight, sparse=self.sparse) - self.start[rows]
        return self.strength * (moved * self.scale).square().sum()


class ConcatenatedTables(InputLayer):
    """A frozen table beside a trained one, their vectors joined: 2 D numbers a word. Shapes: as InputTable."""

    def __init__(
        self, table: torch.Tensor, covered: torch.Tensor, trained: torch.Tensor, sparse: bool = False
    ):
        super().__init__(2 * table.shape[1], covered)
        self.kept = InputTable(table, covered, frozen=True)
        self.trained = InputTable(trained, covered, sparse=sparse)

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns both vectors of each word, the frozen one first. Shapes: ids (B, T) -> (B, T, 2 D)."""
        return torch.cat([self.kept(ids), self.trained(ids)], dim=-1)


class ProjectedTable(InputLayer):
    """A frozen table behind a trained linear map, which starts as the identity. Shapes: as InputTable."""

    def __init__(self, table: torch.Tensor, covered: torch.Tensor):
        super().__init__(table.shape[1], covered)
        self.kept = InputTable(table, covered, frozen=True)
        self.map = nn.Parameter(torch.eye(self.dim))

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns mapped vectors. Shapes: ids (B, T) -> (B, T, D)."""
        return self.kept(ids) @ self.map.T


class GatedTables(InputLayer):
    """g · kept + (1 - g) · trained, with g = sigmoid of a number learnt for each word; uncovered words have no g.

    Shapes: as InputTable.
    """

    def __init__(
        self, table: torch.Tensor, covered: torch.Tensor, trained: torch.Tensor, sparse: bool = False
    ):
        super().__init__(table.shape[1], covered)
        self.sparse = sparse
        self.register_buffer("kept", table.clone())
        self.trained = InputTable(trained, covered, sparse=sparse)
        self.gates = nn.Parameter(
            torch.full((len(table), 1), GATE_START)
        )  # a table, so that rows are touched alone

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns mixed vectors. Shapes: ids (B, T) -> (B, T, D)."""
        gate = F.embedding(ids, self.gates, sparse=self.sparse).sigmoid() * self.covered[ids][..., None]
        return gate * self.kept[ids] + (1 - gate) * self.trained(ids)
