#!/usr/bin/env bash
# Checks the files of this archive against SHA256SUMS, and the events against the head of the run's journal.
# Take the head from the end of the run or from the notice in the channel, never from this archive.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ $# != 1 ]; then
  echo "usage: bash verify.sh HEAD" >&2
  exit 2
fi

fail() { echo "verify.sh: $*" >&2; exit 1; }

# Writes bytes that are given in hexadecimal.
bytes() {
  local text=$1 escaped=
  while [ -n "$text" ]; do escaped+="\\x${text:0:2}"; text=${text:2}; done
  printf "$escaped"
}

number() { bytes "$(printf '%016x' "$1")"; }
field() { sed -n "s/^  \"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" journal/header.json; }
part() { number "${#1}"; printf '%s' "$1"; }
sha256() { local sum; sum=$(sha256sum); printf '%s' "${sum%% *}"; }

sha256sum --quiet -c SHA256SUMS || fail "a file was changed"

hash=$({
  for name in format run engine created_ms; do part "$(field "$name")"; done
  number "$(wc -c < journal/plan.json)"
  cat journal/plan.json
} | sha256)

count=0
while IFS= read -r line; do
  count=$((count + 1))
  seq=${line#'{"seq":'}; seq=${seq%%,*}
  at=${line#*'"at_ms":'}; at=${at%%,*}
  class=${line#*'"class":"'}; class=${class%%'"'*}
  stored=${line#*'"hash":"'}; stored=${stored%%'"'*}
  body=${line#*'"event":'}; body=${body%\}}
  [ "$seq" = "$count" ] || fail "event $count is missing"
  [ "$class" = essential ] || continue
  hash=$({ bytes "$hash"; number "$seq"; number "$at"; printf '%s' "$body"; } | sha256)
  [ "$hash" = "$stored" ] || fail "event $seq, or one before it, was changed"
done < journal/events.jsonl

[ "$hash" = "$1" ] || fail "the head is $hash, and not $1: it is another run, or its end is missing"
echo "the files are as SHA256SUMS says, and $count events end with the head given"
