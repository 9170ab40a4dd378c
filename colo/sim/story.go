package sim

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Tell prints a schedule, what happened and what was broken.
func Tell(s Schedule, r Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, %d link(s)", s.Seed, s.Links)
	if s.Unsettled {
		b.WriteString(", beginning while the VM is being protected")
	}
	if s.Recovery {
		b.WriteString(", with recovery")
	}
	if s.NoArbiter {
		b.WriteString(", without an arbiter")
	}
	b.WriteString("\n")
	for _, st := range s.Steps {
		fmt.Fprintf(&b, "  %s\n", st)
	}
	if s.Tail > 0 {
		fmt.Fprintf(&b, "  everything is mended %s later\n", s.Tail)
	}
	lines := sorted(r.Story)
	for _, l := range lines {
		fmt.Fprintf(&b, "%10.3f ms %-7s %s\n", float64(l.At)/float64(time.Millisecond), l.Who, l.Text)
	}
	if r.Violation != nil {
		fmt.Fprintf(&b, "BROKEN after %s: %s\n", r.Violation.At.Round(time.Microsecond), r.Violation)
	}
	return b.String()
}

// sorted puts what happened at one instant into an order.
func sorted(lines []Line) []Line {
	lines = slices.Clone(lines)
	slices.SortStableFunc(lines, func(a, b Line) int {
		return cmp.Or(cmp.Compare(a.At, b.At), strings.Compare(a.Who, b.Who), strings.Compare(a.Text, b.Text))
	})
	return lines
}
