package provision

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// progress tells a person what goes on: one line that changes on a terminal,
// plain lines elsewhere. Used by one goroutine at a time.
type progress struct {
	out      io.Writer
	terminal bool
	open     bool // the terminal's line is not ended yet
	last     int  // tenth that was told last, where there is no terminal
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out}
	if p.out == nil {
		p.out = io.Discard
	}
	if f, ok := out.(*os.File); ok {
		p.terminal = term.IsTerminal(int(f.Fd()))
	}
	return p
}

// step begins something new.
func (p *progress) step(format string, args ...any) {
	p.finish()
	p.last = 0
	fmt.Fprintf(p.out, format+"\n", args...)
}

// at says how far the step has come, in percent.
func (p *progress) at(what string, percent int) {
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K%s %d %%", what, percent)
		p.open = true
		return
	}
	if tenth := percent / 10; tenth > p.last {
		p.last = tenth
		fmt.Fprintf(p.out, "%s %d %%\n", what, percent)
	}
}

// finish ends a line that is still open.
func (p *progress) finish() {
	if p.open {
		fmt.Fprintln(p.out)
		p.open = false
	}
}
