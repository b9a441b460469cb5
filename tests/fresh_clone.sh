#!/usr/bin/env bash
# Does what the README says on a fresh copy of the tree: serves, asks for a completion, streams one.
#
# The commands stand in README.md in the first ```bash fence after each of the marks `<!-- test:serve -->`,
# `<!-- test:generate -->` and `<!-- test:generate_stream -->`; the answer it promises stands in the fence
# after `<!-- test:answer -->`. They are run as written. CARGO_TARGET_DIR points at this tree's target
# folder, so that nothing is built twice.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
server=
stop() {
    # The server is a process group of its own: a command line may hold `cargo run`, which has a child.
    if [[ -n $server ]]; then
        kill -TERM -- "-$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM

fail() {
    echo "fresh_clone: $*" >&2
    if [[ -s $work/server.log ]]; then
        echo "the server's words:" >&2
        tail -n 40 "$work/server.log" >&2
    fi
    exit 1
}

if git -C "$root" rev-parse --verify --quiet HEAD >/dev/null 2>&1; then
    git clone --quiet --no-hardlinks "$root" "$work/clone"
elif git -C "$root" rev-parse --git-dir >/dev/null 2>&1; then
    mkdir "$work/clone"
    git -C "$root" ls-files -z --cached --others --exclude-standard |
        tar -C "$root" --null --ignore-failed-read -T - -cf - | tar -C "$work/clone" -xf -
else
    mkdir "$work/clone"
    tar -C "$root" --exclude=./target --exclude=./.git -cf - . | tar -C "$work/clone" -xf -
fi
cd "$work/clone"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}"
[[ -f README.md ]] || fail "there is no README.md"

# Prints the inside of the first fence after a mark.
fence() {
    awk -v mark="<!-- test:$1 -->" '
        index($0, mark) { found = 1; next }
        found && /^```/ { if (inside) exit; inside = 1; next }
        inside { print }
    ' README.md
}

serve=$(fence serve | grep -v '^[[:space:]]*\(#.*\)\?$' | head -n 1 || true)
generate=$(fence generate)
generate_stream=$(fence generate_stream)
answer=$(fence answer)
for name in serve generate generate_stream answer; do
    [[ -n ${!name} ]] || fail "README.md has no fence after <!-- test:$name -->"
done

echo "+ $serve"
setsid bash -c "$serve" >"$work/server.log" 2>&1 &
server=$!
# A cold build may come first.
for _ in $(seq 9000); do
    grep -q Connected "$work/server.log" && break
    kill -0 "$server" 2>/dev/null || fail "the server did not start"
    sleep 0.2
done
grep -q Connected "$work/server.log" || fail "the server is not ready"

echo "+ $generate"
bash -euo pipefail -c "$generate" >"$work/generate" || fail "the command to generate failed"
echo "+ $generate_stream"
bash -euo pipefail -c "$generate_stream" >"$work/generate_stream" || fail "the command to stream failed"

python3 - "$work" "$answer" <<'PY' || fail "the answers are not what README.md says"
import json
import sys

work, shown = sys.argv[1:]


def generated_text(text):
    """The text of an answer of either route, or of a plain sentence."""
    try:
        body = json.loads(text)
    except ValueError:
        return text.strip("\n")
    return (body[0] if isinstance(body, list) else body)["generated_text"]


answer = json.load(open(f"{work}/generate"))
text = generated_text(json.dumps(answer))
if not text:
    sys.exit("generated_text is empty")
if text != generated_text(shown):
    sys.exit(f"README.md shows {generated_text(shown)!r}, the server says {text!r}")

lines = open(f"{work}/generate_stream").read().splitlines()
frames = [line for line in lines if line.startswith("data:")]
last = json.loads(frames[-1].removeprefix("data:"))
if not last.get("generated_text"):
    sys.exit(f"the stream ends with {last}")
PY
echo "fresh_clone: the README's commands do what it says"
