#!/usr/bin/env bash
# Sets up Python and runs the notebooks in order, or the tests. `./run_all.sh --help` says more.
set -euo pipefail

help() {
    cat <<'TEXT'
usage: ./run_all.sh [--profile NAME] [--only NN] [--from NN] [--seed N] [--active]
       ./run_all.sh [--active] test [pytest arguments]

Runs the notebooks in order, from class names to tables, into results/NAME/. What is still valid is reused.

  --profile NAME  a file of profiles/, without .yaml (default: mini)
  --only NN       execute this notebook alone, even if it is valid
  --from NN       begin with this notebook
  --seed N        the first seed, instead of the profile's
  --active        install into and use the active Python environment, not .venv of this folder (or USAM_ACTIVE_ENV=1)
  test            run the tests

PYTHON        the Python (3.11 to 3.13) that makes .venv; found by itself if not set
USAM_DATA     folder for data sets, images and embeddings instead of data/
USAM_RESULTS  folder for results instead of results/
TEXT
}

say() { printf 'run_all.sh: %s\n' "$*"; }
fail() { say "$1" >&2; exit "${2:-1}"; }
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; }

root() {  # the folder of this file, behind any symbolic links
    local file=$1 link
    while [ -L "$file" ]; do
        link=$(readlink "$file")
        case $link in /*) file=$link ;; *) file=$(dirname "$file")/$link ;; esac
    done
    cd "$(dirname "$file")" && pwd -P
}

find_python() {  # prints the first Python that fits
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
        if fits "$candidate"; then echo "$candidate"; return; fi
        [ "$candidate" != "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is no Python 3.11 to 3.13: set another, or unset it"
    done
    fail "no Python 3.11 to 3.13 found: install one, or name it: PYTHON=/path/to/python3.12 ./run_all.sh"
}

environment() {  # sets $python
    local base
    if [ "$active" = 1 ]; then
        python=$(command -v python || command -v python3) || fail "--active: no python in this environment"
        fits "$python" || fail "--active: $python is no Python 3.11 to 3.13: activate another environment"
        return
    fi
    python=$root/.venv/bin/python
    if fits "$python" && "$python" -m pip --version >/dev/null 2>&1; then return; fi
    base=$(find_python)
    say "making .venv with $base"
    "$base" -m venv --clear "$root/.venv" ||
        fail "$base could not make .venv: free some disk space, or install its venv module (Debian: python3-venv)"
}

install() {
    local prefix stamp key started=$SECONDS
    prefix=$("$python" -c 'import sys; print(sys.prefix)')
    stamp=$prefix/usam-installed
    # The folder belongs to the key: a copied or moved repository must not use the code of the old place.
    key="$(cat "$root/requirements.lock" "$root/pyproject.toml" | sha256) $root"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
        say "packages are installed already ($prefix)"
        return
    fi
    say "installing packages into $prefix (about 6.5 GB on disk, a few minutes)"
    rm -f "$stamp"
    { pip install -r "$root/requirements.lock" && pip install --no-build-isolation -e "$root"; } ||
        fail "installation failed: see pip's message above, check network and disk space, then start again"
    echo "$key" >"$stamp"  # last, so that a half-finished installation is done again
    say "installed in $((SECONDS - started)) s"
}

pip() { "$python" -m pip --disable-pip-version-check -q "$@" --no-deps; }
sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d' ' -f1; }

active=${USAM_ACTIVE_ENV:-0}
job=notebooks
options=()
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) help; exit ;;
        --active) active=1 ;;
        --profile | --only | --from | --seed)
            [ $# -ge 2 ] || fail "$1 needs a value; ./run_all.sh --help shows all" 2
            options+=("$1" "$2"); shift ;;
        --profile=* | --only=* | --from=* | --seed=*) options+=("$1") ;;
        test) job=tests; shift; break ;;
        *) fail "unknown option '$1'; ./run_all.sh --help shows all" 2 ;;
    esac
    shift
done

# glibc gives large blocks back to the system after each use and asks for them again, page by page. Kept instead, SAM's
# embeddings take 0.20 s an image, not 0.27 (two cores, no GPU). Other C libraries ignore this.
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-100000000000}

trap 'echo; fail "stopped; start again to go on" 130' INT
root=$(root "${BASH_SOURCE[0]}")
environment
install
if [ "$job" = notebooks ]; then
    # -P: a folder called usam where the user happens to be is not ours.
    exec "$python" -P -m usam.cli ${options[@]+"${options[@]}"}
fi
cd "$root"
# OpenMP's threads wait actively for each other: beside other work, small networks then take half as long again.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
"$python" -m pytest "$@"
