package api

import (
	"fmt"
	"testing"
	"time"
)

// TestRefusalsDontFlood: the same is noted once in a window, only so many of a VM's at all, and nothing of a VM that there isn't.
func TestRefusalsDontFlood(t *testing.T) {
	var f refusals
	now, vms := time.Unix(1000, 0), []string{"web", "db"}
	count := func(vm string, at time.Time) (n int) {
		for i := range 10 * refusalMost {
			for range 2 {
				if f.fresh(vms, vm, fmt.Sprint("protect by ", i), at) {
					n++
				}
			}
		}
		return n
	}
	if n := count("web", now); n != refusalMost {
		t.Errorf("%d of web", n)
	}
	if n := count("db", now.Add(refusalWindow-1)); n != refusalMost {
		t.Errorf("%d of db, which has an hour of its own", n)
	}
	if n := count("web", now.Add(refusalWindow-1)); n != 0 {
		t.Errorf("%d more of web in the same hour", n)
	}
	if n := count("web", now.Add(refusalWindow)); n != refusalMost {
		t.Errorf("%d of web in the next hour", n)
	}
	if n := count("made-up", now); n != 0 {
		t.Errorf("%d of a VM that there isn't", n)
	}
	vms = []string{"db"}
	if f.fresh(vms, "web", "x", now); len(f.vms) != 1 {
		t.Errorf("%d VMs are remembered, there is one", len(f.vms))
	}
}
