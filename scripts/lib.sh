# shellcheck shell=bash
# What the scripts here share: headlines, and the installation of what is missing.
#
# Nothing is installed that is there already: a second run asks no package server and needs no root.
# No system service is started, stopped or configured; the servers of tests and demonstration are processes that
# they start themselves.

readonly RUST_NEEDED=1.95

# ---- what people see -------------------------------------------------------------------------------------------

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
  BOLD=$'\e[1m' RED=$'\e[31m' GREEN=$'\e[32m' DIM=$'\e[2m' PLAIN=$'\e[0m'
else
  BOLD='' RED='' GREEN='' DIM='' PLAIN=''
fi

say() { printf '   %s\n' "$*"; }
good() { printf '   %s%s%s\n' "$GREEN" "$*" "$PLAIN"; }
bad() { printf '   %s%s%s\n' "$RED" "$*" "$PLAIN"; }
warn() { printf '   %s%s%s\n' "$RED" "$*" "$PLAIN" >&2; }

# die MESSAGE [WHAT TO DO]
die() {
  printf '\n%s%s%s\n' "$RED$BOLD" "$1" "$PLAIN" >&2
  [ -z "${2:-}" ] || printf '%s\n' "$2" >&2
  exit 1
}

PHASE='' PHASE_BEGAN=0

# phase TITLE EXPECTED: a headline with the time to expect, after the time that the last phase took.
phase() {
  phase_end
  PHASE=$1 PHASE_BEGAN=$SECONDS
  printf '\n%s== %s%s %s(%s)%s\n' "$BOLD" "$1" "$PLAIN" "$DIM" "$2" "$PLAIN"
}

phase_end() {
  [ -z "$PHASE" ] || printf '   %s%s: %s%s\n' "$DIM" "$PHASE" "$(duration $((SECONDS - PHASE_BEGAN)))" "$PLAIN"
  PHASE=''
}

duration() {
  if (($1 < 60)); then echo "$1s"; else echo "$(($1 / 60))m $(($1 % 60))s"; fi
}

# ---- what is installed -----------------------------------------------------------------------------------------

is_root() { [ "$(id -u)" = 0 ]; }

# Runs a command as root. Without a terminal sudo must not ask for a password: it would wait for ever.
as_root() {
  if is_root; then
    "$@"
  elif [ -t 0 ] && [ -t 2 ]; then
    sudo "$@"
  else
    sudo --non-interactive "$@"
  fi
}

# Prints the directory with the programs of the newest Postgres server.
postgres_bin() {
  local dir newest='' version best=0
  for dir in /usr/lib/postgresql/*/bin; do
    version=${dir#/usr/lib/postgresql/} version=${version%%/*}
    if [[ $version =~ ^[0-9]+$ ]] && ((version > best)) && [ -x "$dir/postgres" ]; then
      best=$version newest=$dir
    fi
  done
  if [ -z "$newest" ] && command -v postgres >/dev/null; then
    newest=$(dirname "$(readlink -f "$(command -v postgres)")")
  fi
  [ -n "$newest" ] && echo "$newest"
}

# Prints the packages that are missing.
missing_packages() {
  command -v cc >/dev/null || echo gcc
  [ -e /usr/include/stdio.h ] || echo libc6-dev
  command -v git >/dev/null || echo git
  command -v curl >/dev/null || echo curl
  [ -s /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
  postgres_bin >/dev/null || echo postgresql
  command -v redis-server >/dev/null || echo redis-server
  if [ -n "${FOR_TESTS:-}" ]; then
    [ -x /usr/sbin/mariadbd ] || command -v mariadbd >/dev/null || echo mariadb-server
    command -v mariadb-binlog >/dev/null || echo mariadb-client
  fi
  [ -z "${FOR_TESTS:-}" ] || is_moto_there || python3 -c 'import venv, ensurepip' 2>/dev/null || echo python3-venv
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  if ((${#missing[@]} == 0)); then
    say "Everything needed from the system's packages is there."
    return
  fi
  say "Missing: ${missing[*]}. They are installed with apt-get; nothing else is changed."
  command -v apt-get >/dev/null ||
    die "This machine has no apt-get." "Install these by hand and start again: ${missing[*]}"
  is_root || command -v sudo >/dev/null ||
    die "Packages are missing, and there is no sudo to install them." \
      "As root: apt-get install --no-install-recommends ${missing[*]}"
  as_root bash -c "$INSTALL" install-packages "${missing[@]}" ||
    die "The packages could not be installed." \
      "By hand: apt-get update && apt-get install --no-install-recommends ${missing[*]}"
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]} == 0)) || die "Still missing after the installation: ${missing[*]}"
}

# Runs as root. The packages of the servers would start them at once, and Postgres would make a cluster in
# /var/lib/postgresql; that of MariaDB makes its data directory in /var/lib/mysql, which no test uses. Two files prevent that for as long as the installation takes, and are gone afterwards: the
# policy that package scripts ask before they start anything, and a setting for new clusters. A policy that is there
# already is left as it is. What this installed is then taken out of the start of the machine.
# shellcheck disable=SC2016
readonly INSTALL='
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d clusters=/etc/postgresql-common/createcluster.d/lifeboat-install.conf made=()
tidy() {
  ((${#made[@]} == 0)) || rm -f "${made[@]}"
  rmdir --ignore-fail-on-non-empty "${clusters%/*}" 2>/dev/null || true
}
trap tidy EXIT
trap "exit 130" INT TERM HUP
if [ ! -e "$policy" ]; then
  printf "#!/bin/sh\nexit 101\n" >"$policy"
  made+=("$policy")
  chmod 755 "$policy"
fi
if [ ! -e "$clusters" ]; then
  mkdir -p "${clusters%/*}"
  echo "create_main_cluster = false" >"$clusters"
  made+=("$clusters")
fi
apt-get -qq update
apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends --no-remove "$@" >/dev/null
if command -v systemctl >/dev/null; then
  for package in "$@"; do
    case $package in postgresql | redis-server | mariadb-server) systemctl --quiet disable "$package" 2>/dev/null || true ;; esac
  done
fi
echo "   Installed: $*. No service was started, and none starts with the machine."
'

# ---- a test server for S3 --------------------------------------------------------------------------------------

readonly MOTO_VERSION=5.2.5

# Shared by all working copies of this user; tests look there too.
moto_dir() { echo "${LIFEBOAT_MOTO:-${XDG_CACHE_HOME:-$HOME/.cache}/lifeboat/moto-$MOTO_VERSION}"; }

is_moto_there() {
  [ -n "${LIFEBOAT_TEST_S3:-}" ] || "$(moto_dir)/bin/python" -c 'import moto.server' 2>/dev/null
}

# Installs moto_server from PyPI into a virtual environment of this user, unless another server is named.
ensure_moto() {
  if is_moto_there; then
    say "A test server for S3 is there."
    return
  fi
  local dir
  dir=$(moto_dir)
  say "A test server for S3, moto $MOTO_VERSION from PyPI, is installed in $dir;"
  say "nothing else of this user's Python is changed. LIFEBOAT_TEST_S3=http://… names another server instead."
  rm -rf "$dir"
  mkdir -p "$dir"
  python3 -m venv "$dir" && "$dir/bin/pip" --quiet --disable-pip-version-check install "moto[server,s3]==$MOTO_VERSION" ||
    die "The test server for S3 could not be installed." \
      "By hand: python3 -m venv $dir && $dir/bin/pip install 'moto[server,s3]==$MOTO_VERSION'"
  is_moto_there || die "The test server for S3 was installed in $dir and does not start."
}

# ---- Rust ------------------------------------------------------------------------------------------------------

# Puts a cargo that is new enough first on PATH, and installs one if there is none.
ensure_cargo() {
  find_cargo || {
    install_rust
    find_cargo || die "The Rust toolchain that was installed is older than $RUST_NEEDED." "Try: rustup update stable"
  }
  local target=${CARGO_TARGET_DIR:-target}
  [ ! -e "$target" ] || [ -w "$target" ] ||
    die "$PWD/$target belongs to somebody else, perhaps from a run with sudo." "sudo chown -R $(id -un) $PWD/$target"
  say "Rust: $(cargo --version)"
}

# The user's own choice first; then the stable toolchain of rustup, for this program and its children alone.
find_cargo() {
  local toolchain candidate
  for toolchain in "${RUSTUP_TOOLCHAIN:-}" stable; do
    for candidate in "$(command -v cargo || true)" "${CARGO_HOME:-$HOME/.cargo}/bin/cargo"; do
      [ -n "$candidate" ] && is_new_enough "$candidate" "$toolchain" || continue
      PATH=$(dirname "$candidate"):$PATH
      export PATH
      [ -z "$toolchain" ] || export RUSTUP_TOOLCHAIN=$toolchain
      return 0
    done
  done
  return 1
}

# is_new_enough CARGO TOOLCHAIN: whether it runs and is of the version needed or newer.
is_new_enough() {
  local version
  version=$(
    [ -z "$2" ] || export RUSTUP_TOOLCHAIN=$2
    "$1" --version 2>/dev/null </dev/null | cut -d' ' -f2
  ) || return 1
  [ -n "$version" ] && printf '%s\n%s\n' "$RUST_NEEDED" "$version" | sort --check=quiet --version-sort
}

install_rust() {
  local rustup
  rustup=$(command -v rustup || true)
  [ -n "$rustup" ] || rustup=${CARGO_HOME:-$HOME/.cargo}/bin/rustup
  if [ -x "$rustup" ]; then
    # Not `rustup default`: that would change other projects of this user.
    say "No cargo of at least $RUST_NEEDED: rustup fetches the stable toolchain; your default stays as it is."
    "$rustup" toolchain install stable --profile minimal --no-self-update && return
    die "rustup could not fetch a toolchain." "Try by hand: rustup toolchain install stable"
  fi
  say "No cargo of at least $RUST_NEEDED: rustup is installed in ${rustup%/bin/rustup}, minimal profile;"
  say "no shell file is changed."
  curl --proto '=https' --tlsv1.2 --silent --show-error --fail --retry 3 https://sh.rustup.rs |
    sh -s -- -y --quiet --profile minimal --default-toolchain stable --no-modify-path ||
    die "Rust could not be installed." "Install it from https://rustup.rs or the package rustup, and start again."
}

# ensure_component NAME PROGRAM: a part of the toolchain that the minimal profile leaves out.
ensure_component() {
  cargo "$2" --version >/dev/null 2>&1 && return
  say "Adding $1 to the Rust toolchain."
  rustup component add "$1" || die "$1 is missing and rustup cannot add it." "Install the package $1."
}
