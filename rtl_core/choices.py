"""The values that settings can take by name, and which settings do not go together."""

from rtl_core.catalogue import LEAKY

CHOICES = {
    "model": ("lstm", "unigram", "kneser-ney"),
    "readout": ("averaged", "input-layer"),
    "fold": ("nothing", "case", "digits", "case+digits"),
    "input_init": ("pretrained", "random"),
    "input_mode": ("finetuned", "frozen", "concatenated", "projected", "gated", "l2sp"),
    "output_init": ("random", "tied", "pretrained"),
    "output_mode": ("finetuned", "frozen"),
    "encoder": ("own", "shared"),
    "context_feature": (
        "none", "domain-posterior", "lsa-history", "shuffled-domain-posterior", "shuffled-lsa-history",
        "domain-oracle",
    ),
    "auxiliary": ("none", "domain"),
    "criterion": ("sampled-softmax", "softmax", "nce", "adaptive-softmax"),
    "sampling": ("unigram", "log-uniform"),
    "output_rows": ("touched", "all"),
    "tuning": ("none", "equal-budget"),
    "train_context": ("stream", "document", "sentence"),
    "schedule": ("one-cycle", "constant"),
}  # fmt: skip
ORACLE = "domain-oracle"  # a context feature that no new text has: the label itself

# Settings that do not go together, each with the reason and what to do.
REFUSED = (
    (
        {"output_init": ("tied",), "input_mode": ("frozen",)},
        "a tied table is the output layer too, which would be frozen with it; choose finetuned, or output_init "
        "random",
    ),
    (
        {"output_init": ("tied",), "input_mode": ("concatenated", "projected", "gated")},
        "a tied table must be the input table itself; choose finetuned, or output_init random",
    ),
    (
        {"output_init": ("tied",), "input_mode": ("l2sp",)},
        "a tied table moves as the output layer too, where nothing would hold it; choose finetuned, or output_init "
        "random or pretrained",
    ),
    (
        {"output_init": ("tied",), "output_mode": ("frozen",)},
        "a tied table is the input table too, which is trained; choose output_mode finetuned, or output_init "
        "random or pretrained",
    ),
    (
        {"output_init": ("tied",), "input_rms": ("learned",)},
        "the size of a tied table is the output layer's; give input_rms as a number, or output_init random",
    ),
    (
        {"tuning": ("equal-budget",), "input_rms": ("learned",)},
        "tuning tries several sizes of the table; give input_rms as a number",
    ),
    (
        {"input_init": ("random",), "input_mode": ("concatenated", "projected", "gated", "l2sp")},
        "this mode is a way of using the source's table at the input; choose input_init pretrained, or "
        "input_mode finetuned or frozen",
    ),
    (
        {"input_init": ("random",), "output_init": ("tied",)},
        "a tied table is the source's or nobody's; take source random instead",
    ),
    (
        {"input_init": ("random",), "output_init": ("random",)},
        "nothing would use the source's table; for random tables leave input_init as it is and take source random, "
        "or choose output_init pretrained",
    ),
    (
        {"warmup_frozen": range(1, 1001), "input_mode": ("frozen", "concatenated", "projected", "gated")},
        "the source's table never thaws in this mode; choose finetuned or l2sp, or warmup_frozen 0",
    ),
    (
        {"warmup_frozen": range(1, 1001), "output_init": ("tied",)},
        "a tied table is the output layer too, which learns from the first step; choose output_init random or "
        "pretrained, or warmup_frozen 0",
    ),
    (
        {"criterion": ("adaptive-softmax",), "output_init": ("tied", "pretrained")},
        "adaptive softmax has no output table of the input's size; choose another criterion, or output_init random",
    ),
    (
        {"criterion": ("adaptive-softmax",), "output_mode": ("frozen",)},
        "adaptive softmax starts at random, and frozen would learn nothing; choose output_mode finetuned",
    ),
    (
        {"output_mode": ("frozen",), "output_rows": ("all",)},
        "a frozen output table keeps its rows; choose output_mode finetuned, or output_rows touched",
    ),
    (
        {"source": (LEAKY,), "context_feature": CHOICES["context_feature"][1:]},
        "this source gives the model features of its own; choose context_feature none, or another source",
    ),
)
