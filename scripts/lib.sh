# shellcheck shell=bash
# What every script here shares: where things are, how to speak, how to install a missing Debian package.
# Sourced, never run.  Nothing in this file touches the machine by itself.

export ROOT
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=${NYDUS_EROFS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nydus-erofs}
export NYDUS_EROFS_CACHE=$CACHE

# Progress goes to stderr: stdout belongs to what a script answers.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "error: $*"; exit 1; }

# help FILE: the comment block under the shebang line is the help text.
help() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$1"; }

# quietly WHAT COMMAND...: run, show the output only when it fails.
quietly() {
    local what=$1 log status=0
    shift
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    if ((status)); then
        tail -n 40 "$log" >&2
        rm -f "$log"
        die "$what failed (exit $status); the end of its output is above"
    fi
    rm -f "$log"
}

# apt_install PACKAGE...: only called for what was found missing.  "a|b" means the first that apt knows.
apt_install() {
    command -v apt-get >/dev/null || die "missing: $*; no apt-get here, install it by other means"
    ((EUID == 0)) || die "missing: $*; run as root once, or: sudo apt-get install $*"
    quietly "apt-get update" apt-get -q update
    local wanted choice packages=()
    for wanted in "$@"; do
        for choice in ${wanted//|/ }; do
            apt-cache policy "$choice" | grep -q 'Candidate: [^(]' && break
        done
        packages+=("$choice")
    done
    say "installing with apt: ${packages[*]}"
    DEBIAN_FRONTEND=noninteractive quietly "apt-get install ${packages[*]}" \
        apt-get -q install --yes --no-install-recommends "${packages[@]}"
}

# held LOCKNAME: serialise scripts started side by side; the lock goes when the calling shell ends.
held() {
    mkdir -p "$CACHE"
    exec {LOCK_FD}>"$CACHE/$1.lock"
    flock -n "$LOCK_FD" || { say "waiting for another run to finish ($CACHE/$1.lock)"; flock "$LOCK_FD"; }
}
