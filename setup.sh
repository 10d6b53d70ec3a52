#!/bin/sh
# Makes the environment in folder $1 ready for this checkout: called by every target of the Makefile.
# Does nothing when it is ready. The stamp is written last, so an interrupted set-up is taken up again.
set -eu
env=$1
python=$env/bin/python
stamp=$env/.rtl-core
wanted="$(cat requirements.lock pyproject.toml setup.sh | cksum) $(pwd -P)"
if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

fail() {
    printf '\nSet-up stopped: %s\n' "$*" >&2
    exit 1
}
works() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }
version() { "$1" -V 2>/dev/null || echo "no Python"; }

if [ "$env" = .venv ] && ! { works "$python" && "$python" -m pip --version >/dev/null 2>&1; }; then
    base=
    for candidate in python3.11 python3.12 python3.13 python3; do
        if works "$candidate"; then base=$candidate; break; fi
    done
    [ -n "$base" ] || fail "Python 3.11, 3.12 or 3.13 is needed, but python3 is: $(version python3)." \
        "Install one of them, or activate an environment that has one, and run make again."
    "$base" -m venv --clear .venv ||
        fail "$base cannot make a virtual environment; its message above says what to install. Then run make again."
fi
works "$python" || fail "the active environment $env has $(version "$python"), and Python 3.11, 3.12 or" \
    "3.13 is needed. Deactivate it (then make uses a .venv of its own), or activate another, and run make again."
"$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null ||
    fail "the active environment $env has no pip. Install pip in it and run make again."

rm -f "$stamp"
echo "Setting up $env with $(version "$python"), once: about 150 packages, some minutes, 2 GB of disk" \
    "(6 where torch brings the libraries of a GPU) ..."
quiet=--quiet
if [ -t 1 ]; then quiet=; fi # on a terminal pip shows its progress
install() {
    "$python" -m pip install $quiet --disable-pip-version-check "$@" ||
        fail "pip could not install all packages (its message is above). Check the network connection and the free" \
            "disk space, then run make again: it goes on where it stopped."
}
if [ -d "$env/conda-meta" ]; then
    install --editable '.[test,cluster]' # what conda installed within the ranges of pyproject.toml stays as it is
else
    install --requirement requirements.lock
    install --no-deps --no-build-isolation --editable .
fi
printf '%s\n' "$wanted" >"$stamp"
echo "Set-up finished."
