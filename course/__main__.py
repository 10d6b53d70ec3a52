"""`python -m course notebooks | site | blank | figures`: what the targets of the Makefile call."""

import argparse
import sys
from pathlib import Path

from course import blank, execution, figures, site
from rtl_core.storage import StudyError, project_root


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 2 something to mend, 130 Ctrl-C."""
    parser = argparse.ArgumentParser("course", description="The notebooks as a course.")
    parser.add_argument("command", choices=("notebooks", "site", "blank", "figures"))
    parser.add_argument("notebooks", nargs="*", type=Path, help="of notebooks: which ones (default: all)")
    parser.add_argument("--out", type=Path, help="folder to write to (default: where they belong)")
    arguments = parser.parse_args(argv)
    root = project_root()
    try:
        if arguments.command == "notebooks":
            every = [*root.glob("notebooks/[0-9]*.ipynb"), *root.glob("notebooks/solutions/*.ipynb")]
            execution.execute(arguments.notebooks or sorted(every), arguments.out)
        elif arguments.command == "site":
            print(site.build(root, arguments.out or root / "site")[0])
        elif arguments.command == "blank":
            print(*blank.write(root / "notebooks", arguments.out or root / "blank"), sep="\n")
        else:
            print(*figures.write(arguments.out or root / "figures"), sep="\n")
    except StudyError as error:
        print(f"course: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("course: interrupted; what was finished is kept. Run the same command again.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
