package packaging

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// block is a piece of the guide that a person types.
type block struct {
	name  string
	hosts []string // where
	text  string
}

var marker = regexp.MustCompile(`^<!-- run ([a-z0-9-]+) on ([a-z0-9 ]+) -->$`)

// guide reads docs/quick-start.md: the fenced blocks below a comment "run NAME on HOST...", and every other fenced block of the shell is an error, so that
// nothing is shown that isn't run.
func guide(t *testing.T) []block {
	t.Helper()
	text, err := os.ReadFile("../docs/quick-start.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []block
	var next *block
	inside, skip := false, false
	for n, line := range strings.Split(string(text), "\n") {
		switch {
		case inside && line == "```":
			inside = false
			if !skip {
				out = append(out, *next)
			}
			next, skip = nil, false
		case inside && !skip:
			next.text += line + "\n"
		case inside:
		case strings.HasPrefix(line, "```"):
			inside, skip = true, line != "```sh" && next == nil
			if next == nil && !skip {
				t.Fatalf("docs/quick-start.md:%d: this block is run by no test", n+1)
			}
		default:
			if m := marker.FindStringSubmatch(line); m != nil {
				next = &block{name: m[1], hosts: strings.Fields(m[2])}
			}
		}
	}
	if len(out) == 0 {
		t.Fatal("no blocks")
	}
	return out
}

func guideBlock(t *testing.T, name string) string {
	t.Helper()
	for _, b := range guide(t) {
		if b.name == name {
			return b.text
		}
	}
	t.Fatalf("the guide has no block %s", name)
	return ""
}
