package lab

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
)

func TestTellerKeepsToTheTerminal(t *testing.T) {
	var buf bytes.Buffer
	teller := NewTeller(&buf, true)
	teller.event(colo.Event{Kind: "progress", Text: "copying the disks, of which there are so many that their names fill the line",
		Fields: map[string]any{"done": float64(1 << 20), "total": float64(64 << 20), "rate": float64(5 << 20)}})
	teller.told = time.Time{}
	teller.event(colo.Event{Kind: "progress", Text: "copying the disks", Fields: map[string]any{"done": float64(32 << 20), "total": float64(64 << 20), "rate": float64(5 << 20)}})
	teller.Say("%s", strings.Repeat("word ", 40))
	out := buf.String()
	if !strings.Contains(out, "[########........] 33.6 MB of 67.1 MB, 5.24 MB/s\r\x1b[K") {
		t.Errorf("no progress, or it was not removed: %q", out)
	}
	for _, line := range strings.FieldsFunc(out, func(r rune) bool { return r == '\n' || r == '\r' }) {
		if line = strings.TrimPrefix(line, "\x1b[K"); len(line) > tellWidth {
			t.Errorf("%d columns: %q", len(line), line)
		}
	}
	if strings.Count(out, "word") != 40 {
		t.Errorf("words were lost: %q", out)
	}
}

func TestTellerOffATerminal(t *testing.T) {
	var buf bytes.Buffer
	teller := NewTeller(&buf, false)
	teller.Progress("%d of 10", 1) // too early
	teller.told = time.Now().Add(-time.Minute)
	teller.Progress("%d of 10", 2)
	teller.Progress("%d of 10", 3)
	if got := buf.String(); strings.Contains(got, "\r") || strings.Count(got, "\n") != 1 || !strings.Contains(got, "2 of 10") {
		t.Errorf("got %q", got)
	}
	var silent *Teller
	silent.Say("x")
	silent.Block("x")
	silent.Progress("x")
	silent.event(colo.Event{Kind: "progress"})
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1 kB", 67108864: "67.1 MB", 700_000_000: "700 MB", 5_400_000_000: "5.4 GB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
