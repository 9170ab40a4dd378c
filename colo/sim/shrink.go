package sim

import (
	"slices"
	"testing"
	"time"
)

// Shrink looks for a smaller schedule that breaks the same rule: fewer steps, then faults that are simpler and rounder times. It plays a few
// hundred schedules at most.
func Shrink(t *testing.T, s Schedule, rule string) Schedule {
	tries := 300
	breaks := func(c Schedule) bool {
		if tries--; tries < 0 {
			return false
		}
		r := Run(t, c, false)
		return r.Violation != nil && r.Violation.Rule == rule
	}
	for smaller := true; smaller; {
		smaller = false
		for i := len(s.Steps) - 1; i >= 0; i-- {
			c := s
			c.Steps = slices.Delete(slices.Clone(s.Steps), i, i+1)
			if breaks(c) {
				s, smaller = c, true
			}
		}
	}
	for _, simpler := range []func(*Schedule){
		func(c *Schedule) { c.Links = 1 },
		func(c *Schedule) { c.Unsettled = false },
		func(c *Schedule) { c.Recovery = false },
		func(c *Schedule) { c.Last = 0 },
		func(c *Schedule) { c.Tail = 300 * time.Millisecond },
		func(c *Schedule) { c.Tail = time.Second },
	} {
		c := s
		simpler(&c)
		if breaks(c) {
			s = c
		}
	}
	for i := range s.Steps {
		for _, simpler := range []func(*Step){
			func(p *Step) { p.IO = 0 },
			func(p *Step) { p.After = 0 },
			func(p *Step) { p.After = p.After.Truncate(100 * time.Millisecond) },
			func(p *Step) { p.After = p.After.Truncate(10 * time.Millisecond) },
			func(p *Step) { p.After = p.After.Truncate(time.Millisecond) },
			func(p *Step) { p.Lasts = p.Lasts.Truncate(100 * time.Millisecond) },
			func(p *Step) { p.Lasts = p.Lasts.Truncate(10 * time.Millisecond) },
			func(p *Step) { p.Lasts = p.Lasts.Truncate(time.Millisecond) },
		} {
			c := s
			c.Steps = slices.Clone(s.Steps)
			simpler(&c.Steps[i])
			if c.Steps[i] != s.Steps[i] && (c.Steps[i].Lasts > 0) == (s.Steps[i].Lasts > 0) && breaks(c) {
				s = c
			}
		}
	}
	return s
}
