package lab

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// tellWidth is the width of a plain terminal.
const tellWidth = 80

// A Teller says what happens while it does, a line each, with the time since its beginning. On a terminal it shows progress in the last
// line. It is safe for concurrent use. A nil Teller says nothing. A terminal that
// can't be written to is no reason to end a run.
type Teller struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
	live  bool      // the last line may be written over
	shown bool      // there is such a line now
	told  time.Time // when there was progress last
}

// NewTeller makes a teller; live says that w is a terminal.
func NewTeller(w io.Writer, live bool) *Teller {
	now := time.Now()
	return &Teller{w: w, start: now, told: now, live: live}
}

// Say tells one thing. Text that is too long for a line goes on in the next, indented.
func (t *Teller) Say(format string, args ...any) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	prefix := fmt.Sprintf("%6.1f s  ", time.Since(t.start).Seconds())
	for i, line := range wrap(fmt.Sprintf(format, args...), tellWidth-len(prefix)) {
		if i > 0 {
			prefix = strings.Repeat(" ", len(prefix))
		}
		_, _ = fmt.Fprintln(t.w, prefix+line)
	}
}

// Block writes lines as they are.
func (t *Teller) Block(text string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	_, _ = fmt.Fprintln(t.w, strings.TrimRight(text, "\n"))
}

// Progress shows how far something is: on a terminal in its last line, ten times a second, elsewhere in a line now and then.
func (t *Teller) Progress(format string, args ...any) {
	if t == nil {
		return
	}
	t.mu.Lock()
	now := time.Now()
	pause := 100 * time.Millisecond
	if !t.live {
		pause = 15 * time.Second
	}
	due := now.Sub(t.told) >= pause
	if due {
		t.told = now
	}
	t.mu.Unlock()
	switch {
	case due && t.live:
		t.overwrite(format, args...)
	case due:
		t.Say(format, args...)
	}
}

func (t *Teller) overwrite(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	line := "          " + fmt.Sprintf(format, args...)
	if len(line) >= tellWidth {
		line = line[:tellWidth-1]
	}
	t.clear()
	_, _ = fmt.Fprint(t.w, line)
	t.shown = true
}

func (t *Teller) clear() {
	if t.shown {
		_, _ = fmt.Fprint(t.w, "\r\x1b[K")
		t.shown = false
	}
}

// event shows the progress that nodes report.
func (t *Teller) event(e colo.Event) {
	if t == nil || e.Kind != "progress" {
		return
	}
	number := func(name string) int64 {
		f, _ := e.Fields[name].(float64) // it comes as JSON
		return int64(f)
	}
	done, total, rate := number("done"), number("total"), number("rate")
	if total <= 0 {
		return
	}
	const width = 16
	filled := int(min(done, total) * width / total)
	speed := ""
	if rate > 0 { // at first nobody knows
		speed = ", " + size(rate) + "/s"
	}
	t.Progress("%s [%s%s] %s of %s%s", e.Text, strings.Repeat("#", filled), strings.Repeat(".", width-filled), size(done), size(total), speed)
}

// size prints bytes for people.
func size(n int64) string {
	for _, u := range []struct {
		unit  string
		bytes int64
	}{{"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if n >= u.bytes {
			return fmt.Sprintf("%.3g %s", float64(n)/float64(u.bytes), u.unit)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// wrap breaks text at spaces.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}
