# shellcheck shell=bash
# Shared by every script of this folder: finds a Python, makes environments, and works from the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null # nothing here asks a question; a script started without a terminal must never wait for an answer

# LC_ALL=C makes ASCII of the paths that Python reads of an environment, and a folder's name need not be that.
case ${LC_ALL:-} in C | POSIX) export LC_ALL=C.UTF-8 ;; esac

PEERS=(Pyro5==5.17 Pyro4==4.82 serpent==1.43 msgpack==1.2.4 dill cloudpickle) # what tests and benchmarks are held against

# Two files of tests run side by side on each core, for most of them wait for something. -n 0 after it takes it back:
# one test after the other, as --pdb and -s need it.
SIDE_BY_SIDE=(--numprocesses "$((2 * $(nproc)))" --dist loadfile --no-loadscope-reorder)

say() { printf '== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# asked PARSER ARGUMENT...: answers --help and refuses wrong arguments, before anything is set up.
asked() {
    local python answer
    python=$(find_python)
    answer=$("$python" "$@") || exit
    if [ -n "$answer" ]; then printf '%s\n' "$answer"; exit; fi
}

# explained ARGUMENT...: the same for a script whose help is the comment at its beginning.
explained() {
    case ${1:-} in
        -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "scripts/${0##*/}"; exit ;;
    esac
}

# runs_here PYTHON: it starts and is 3.11 or newer (a version manager's shim may be on PATH and not start).
runs_here() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# find_python [VERSION]: prints the command of a Python 3.11 or newer, or of exactly that version.
find_python() {
    local wanted=${1:-} candidate
    local candidates=(python3 python3.13 python3.12 python3.11)
    if [ -n "$wanted" ]; then
        candidates=("python$wanted" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$wanted".*/bin/python "$wanted")
    fi
    for candidate in "${candidates[@]}"; do
        if runs_here "$candidate"; then echo "$candidate"; return; fi
    done
    die "needs ${wanted:+the interpreter }Python ${wanted:-3.11 or newer}, and found none; install it and run this again"
}

# environment FOLDER PYTHON PACKAGE...: a virtual environment with these packages. One that stands is used again
# until the packages, the interpreter or pyproject.toml change.
environment() {
    local folder=$1 python=$2 stamp
    shift 2
    stamp=$({ "$python" -c 'import sys; print(sys.version, sys.base_prefix)'; echo "$PWD" "$@"; cat pyproject.toml; } | sha256sum)
    if [ "$(cat "$folder/made-from" 2>/dev/null)" = "$stamp" ]; then return; fi
    say "making $folder with $("$python" --version)"
    rm -rf "$folder"
    "$python" -m venv "$folder" || die "cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
    install_into "$folder" "$@"
    echo "$stamp" >"$folder/made-from"
}

# install_into FOLDER PACKAGE...: with uv, which takes seconds, or with pip where uv is not to be had.
install_into() {
    local folder=$1
    shift
    if "$folder/bin/python" -m pip install -qq --disable-pip-version-check uv &&
        "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" "$@"; then
        return
    fi
    say "uv cannot be used here; installing with pip"
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check "$@" || die "cannot install $*"
}

# development_environment [FOLDER PYTHON]
development_environment() {
    local python
    python=${2:-$(find_python)}
    environment "${1:-.venv}" "$python" -e '.[dev]'
}

# browser: Chromium for the tests of the page. Installed where that is possible; where it is not, the tests that need
# it fail and say what to run.
browser() {
    local name
    for name in chromium chromium-browser google-chrome; do
        if command -v "$name" >/dev/null; then return; fi
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing Chromium"
        apt-get update -qq >/dev/null 2>&1 || true
        if DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1; then
            return
        fi
    fi
    say "Chromium is missing: the tests of the gateway's page will fail. As root: apt-get install --no-install-recommends chromium fonts-dejavu-core"
}

# The real Pyro4 and Pyro5, in an environment of their own so that nothing of ours leaks into them.
peers_environment() {
    local python
    python=$(find_python)
    environment .peers "$python" "${PEERS[@]}"
    export PYROXFER_PEERS=$PWD/.peers/bin/python
}

OTHERS=(rpyc==6.0.2 grpcio==1.85.1 zerorpc==0.6.3 matplotlib) # other libraries that the benchmark compares with, and what draws

# What only the benchmark needs: other libraries beside Pyro, and the C program that shows what the machine can do.
benchmark_environment() {
    local python
    python=$(find_python)
    peers_environment
    environment .bench-peers "$python" "${PEERS[@]}" "${OTHERS[@]}"
    export PYROXFER_BENCH_PEERS=$PWD/.bench-peers/bin/python
    rm -f .bench-peers/limit
    if command -v cc >/dev/null; then
        cc -O2 -o .bench-peers/limit scripts/benchlib/programs/limit.c || say "limit.c does not build here; its rows are left out"
    else
        say "no C compiler here; the rows of the limit program are left out"
    fi
}
