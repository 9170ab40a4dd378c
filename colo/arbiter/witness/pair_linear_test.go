package witness

import (
	"errors"
	"os"
	"strconv"
	"testing"

	"github.com/coloctl/coloctl/colo/arbiter/arbitertest"
)

// seeds is how many histories are played: COLOCTL_SEEDS, or else n.
func seeds(t *testing.T, n uint64) uint64 {
	t.Helper()
	if s := os.Getenv("COLOCTL_SEEDS"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// TestPairIsLinearizable lets nodes claim, forget, lose answers, have requests arrive late, die and come back, and seats move, in an order that a
// stage chooses message by message. What they are told must be explained by one arbiter that does one call after another.
func TestPairIsLinearizable(t *testing.T) {
	n := seeds(t, 1000)
	moved, err := plays(t, n, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the seat moved in %d histories of %d", moved, n)
	if moved < int(n)/8 {
		t.Errorf("the seat moved in %d histories of %d only: the test is none", moved, n)
	}
}

// tamper changes what passes between a node and a witness, to break one of the rules.
type tamper func(m *memory, vm string, req *request, node string) (instead *answer, after func(*answer))

// TestBrokenRulesAreFound breaks the rules one by one. Each must be noticed, or the rule or the test would be useless.
func TestBrokenRulesAreFound(t *testing.T) {
	anew := func(m *memory, vm string, req *request) { req.Since = m.entries[vm].Since } // whatever the caller knows of
	for what, tamper := range map[string]tamper{
		"nobody asks the other witness for confirmation": func(m *memory, vm string, req *request, _ string) (*answer, func(*answer)) {
			anew(m, vm, req)
			return nil, func(a *answer) { a.Member, a.Since = true, 0 }
		},
		"what strangers changed is believed": func(m *memory, vm string, req *request, _ string) (*answer, func(*answer)) {
			anew(m, vm, req)
			return nil, func(a *answer) { a.Since = 0 }
		},
		"a promise doesn't say what is pending": func(_ *memory, _ string, req *request, _ string) (*answer, func(*answer)) {
			req.Pending = nil
			return nil, nil
		},
		"one promise is enough": func(m *memory, vm string, req *request, _ string) (*answer, func(*answer)) {
			if req.Op != opPromise {
				return nil, nil
			}
			return nil, func(a *answer) {
				e := m.entries[vm]
				if e.Seen != nil && e.Seen.Record != nil && e.Seen.Tenure > e.Tenure {
					e = entry{Record: e.Seen.Record, Tenure: e.Seen.Tenure + 1, Version: e.Seen.Version + 1}
					m.entries[vm] = e
					*a = answer{Instance: m.instance, Record: e.Record, Tenure: e.Tenure, Version: e.Version}
				}
			}
		},
		"a promise doesn't say what was seen": func(m *memory, vm string, req *request, _ string) (*answer, func(*answer)) {
			if old := m.entries[vm].Seen; old != nil && (req.Op == opPromise || req.Op == opNote) && old.Tenure == req.Sight.Tenure {
				s := *old
				req.Sight = &s
			}
			return nil, nil
		},
		"a withdrawal is believed to be known": func(m *memory, _ string, req *request, _ string) (*answer, func(*answer)) {
			if req.Op != opWithdraw {
				return nil, nil
			}
			return &answer{Instance: m.instance, Seq: req.Seq}, nil
		},
		"late copies of promises are taken": func(m *memory, vm string, req *request, node string) (*answer, func(*answer)) {
			if old, ok := m.entries[vm].Promises[node]; ok && req.Op == opPromise {
				req.Seq = max(req.Seq, old.Seq+1)
			}
			return nil, nil
		},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := plays(t, seeds(t, 1000), tamper)
			if !errors.Is(err, arbitertest.ErrNotLinearizable) && !errors.Is(err, errBelieved) {
				t.Fatalf("not noticed: %v", err)
			}
			t.Log(err)
		})
	}
}
