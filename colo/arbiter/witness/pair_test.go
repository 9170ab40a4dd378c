package witness

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/arbitertest"
)

func TestPairConformance(t *testing.T) {
	x := newTwins(t, "a", "b")
	arbitertest.Conformance(t, func(n string) arbiter.Arbiter { return restarting{x, n} }, "vm")
}

func (x *twins) won(node string, next arbiter.Record) {
	x.t.Helper()
	got, err := x.pair(node).Advance(context.Background(), next)
	if err != nil || arbiter.Judge(next, got) != arbiter.Won {
		x.t.Fatalf("%s asks for %v: %v, %v", node, next, got, err)
	}
}

func (x *twins) holds(node string, next arbiter.Record) {
	x.t.Helper()
	if got, err := x.pair(node).Advance(context.Background(), next); !errors.Is(err, arbiter.ErrUnreachable) {
		x.t.Fatalf("%s asks for %v: %v, %v; it should have no answer", node, next, got, err)
	}
}

// TestSeatMoves tells the story that a pair is for.
func TestSeatMoves(t *testing.T) {
	for first := range 2 {
		t.Run(fmt.Sprintf("w%d lost", first+1), func(t *testing.T) {
			x := newTwins(t, "a", "b")
			x.won("a", rec(1, "a", "a"))
			x.won("a", rec(2, "a", "a", "b"))
			x.tend("b", "vm") // so that it knows of its membership
			// One witness is lost. While both nodes live they move the seat if it was there.
			x.witnessDown(first, arbiter.Unreachable)
			for range 2 {
				x.tend("a", "vm")
				x.tend("b", "vm")
			}
			// Now b's host is lost too.
			x.both("b", arbiter.Unreachable)
			x.won("a", rec(3, "a", "a"))
			// The lost witness comes back with what it knew, and b comes back and asks it first.
			x.witnessDown(first, arbiter.Reachable)
			x.both("b", arbiter.Reachable)
			if got, err := x.pair("b").Advance(t.Context(), rec(3, "b", "b")); err != nil || arbiter.Judge(rec(3, "b", "b"), got) != arbiter.Lost {
				t.Fatalf("b asks late: %v, %v", got, err)
			}
			// And now the other one is lost: the seat moves back, by a's word alone.
			x.witnessDown(1-first, arbiter.Unreachable)
			x.tend("a", "vm")
			x.won("a", rec(4, "a", "a", "b"))
			seats, err := x.pair("a").Seats()
			if err != nil || len(seats) != 1 || seats[0].Witness != x.w[first].id {
				t.Errorf("%+v, %v", seats, err)
			}
		})
	}
}

// TestPairHolds lists what a pair can't do: nobody may win there.
func TestPairHolds(t *testing.T) {
	start := func(t *testing.T) *twins {
		x := newTwins(t, "a", "b")
		x.won("a", rec(1, "a", "a"))
		x.won("a", rec(2, "a", "a", "b"))
		x.tend("b", "vm")
		return x
	}
	t.Run("seat and peer lost at once", func(t *testing.T) {
		x := start(t)
		x.witnessDown(0, arbiter.Unreachable)
		x.both("b", arbiter.Unreachable)
		for range 3 {
			x.tend("a", "vm")
			x.holds("a", rec(3, "a", "a"))
		}
		// The promise is withdrawn by itself when the seat is back.
		x.witnessDown(0, arbiter.Reachable)
		x.won("a", rec(3, "a", "a"))
	})
	t.Run("each node reaches another witness", func(t *testing.T) {
		x := start(t)
		x.w[0].set("b", arbiter.Unreachable)
		x.w[1].set("a", arbiter.Unreachable)
		x.tend("a", "vm")
		x.tend("b", "vm") // b has given up w1 and waits for a
		x.holds("b", rec(3, "b", "b"))
		x.won("a", rec(3, "a", "a"))
		x.tend("b", "vm")
		x.holds("b", rec(3, "b", "b"))
	})
	t.Run("a new VM", func(t *testing.T) {
		x := newTwins(t, "a")
		x.witnessDown(1, arbiter.Unreachable)
		x.holds("a", rec(1, "a", "a"))
	})
	t.Run("the seat lost its file", func(t *testing.T) {
		x := start(t)
		x.w[0].entries, x.w[0].instance = map[string]entry{}, "w1 again"
		x.holds("a", rec(3, "a", "a"))
		// With both nodes alive the other one takes over.
		for range 2 {
			x.tend("a", "vm")
			x.tend("b", "vm")
		}
		x.won("b", rec(3, "b", "b"))
	})
	t.Run("the seat was restored from a backup", func(t *testing.T) {
		x := start(t)
		old := clone(x.w[0].entries)
		x.won("a", rec(3, "a", "a"))
		x.w[0].entries = old
		if _, err := x.pair("a").Advance(t.Context(), rec(4, "a", "a")); !errors.Is(err, arbiter.ErrNoRecord) {
			t.Errorf("a: %v", err)
		}
	})
	t.Run("a node lost its ledger after a promise", func(t *testing.T) {
		x := start(t)
		x.w[0].set("a", arbiter.Unreachable)
		x.tend("a", "vm")
		_ = x.pairs["a"].Close()
		x.dir = t.TempDir()
		x.pairs["a"] = x.open("a")
		x.w[0].set("a", arbiter.Reachable)
		x.w[1].set("a", arbiter.Unreachable)
		x.holds("a", rec(3, "a", "a"))
		x.w[1].set("a", arbiter.Reachable)
		x.won("a", rec(3, "a", "a")) // after withdrawing it
		if e := x.w[1].entries["vm"]; e.Promises["a"].Given {
			t.Errorf("the promise stands: %+v", e)
		}
	})
}

func TestOneWitnessBecomesTwo(t *testing.T) {
	x := newTwins(t, "a", "b", "c")
	plain := func(i int, node string, r arbiter.Record) error {
		_, err := line{x.w[i], node}.once(t.Context(), "vm", request{Op: opAdvance, Next: &r})
		return err
	}
	if err := plain(1, "a", rec(1, "a", "a", "b")); err != nil {
		t.Fatal(err)
	}
	if got, err := x.pair("c").Get(t.Context(), "vm"); err != nil || got.Generation != 1 {
		t.Errorf("a stranger reads %v, %v", got, err)
	}
	x.won("b", rec(2, "b", "b"))
	if err := plain(1, "b", rec(3, "b", "b")); !errors.Is(err, ErrPaired) {
		t.Errorf("a node that knows one witness only, at the seat: %v", err)
	}
	if _, err := x.pair("c").Get(t.Context(), "vm"); err != nil { // which tells the other one
		t.Error(err)
	}
	if err := plain(0, "b", rec(1, "b", "b")); !errors.Is(err, ErrPaired) {
		t.Errorf("a node that knows one witness only, at the other one: %v", err)
	}
	y := newTwins(t, "a")
	for i := range y.w {
		r := rec(1, "a", "a")
		if _, err := (line{y.w[i], "a"}).once(t.Context(), "vm", request{Op: opAdvance, Next: &r}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := y.pair("a").Get(t.Context(), "vm"); !errors.Is(err, ErrSplit) {
		t.Errorf("two records: %v", err)
	}
}

// TestPendingClaims: a claim whose answer was lost may have let others in. They must be asked before the seat moves.
func TestPendingClaims(t *testing.T) {
	for _, told := range []bool{true, false} {
		x := newTwins(t, "a", "b")
		if !told { // what would happen if promises didn't say what is pending
			x.w[1].tamper = func(_ *memory, _ string, req *request, _ string) (*answer, func(*answer)) {
				req.Pending = nil
				return nil, nil
			}
		}
		x.won("a", rec(1, "a", "a"))
		x.w[0].set("a", arbiter.ReplyLost)
		x.holds("a", rec(2, "a", "a", "b"))
		x.w[0].set("a", arbiter.Unreachable)
		if err := x.pair("b").acquaint(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.tend("a", "vm")
		x.won("b", rec(2+1, "b", "b"))
		got, err := x.pair("a").Advance(t.Context(), rec(2, "a", "a"))
		switch split := err == nil && arbiter.IsWon(rec(2, "a", "a"), got); {
		case told && split:
			t.Errorf("a and b go on: %v, %v", got, err)
		case !told && !split:
			t.Errorf("the rule isn't needed, or this test doesn't show it: %v, %v", got, err)
		}
	}
}

// TestWithdrawals: a promise stands until the place where it was given knows that it doesn't.
func TestWithdrawals(t *testing.T) {
	for _, told := range []bool{true, false} {
		x := newTwins(t, "a", "b")
		if !told { // what would happen if a withdrawal were taken as done
			x.w[1].tamper = func(m *memory, _ string, req *request, _ string) (*answer, func(*answer)) {
				if req.Op != opWithdraw {
					return nil, nil
				}
				return &answer{Instance: m.instance, Seq: req.Seq}, nil
			}
		}
		x.won("a", rec(1, "a", "a"))
		x.won("a", rec(2, "a", "a", "b"))
		x.tend("b", "vm")
		x.w[0].set("a", arbiter.Unreachable)
		x.tend("a", "vm")
		x.w[0].set("a", arbiter.Reachable)
		x.won("a", rec(3, "a", "a"))
		x.w[0].set("b", arbiter.Unreachable)
		x.tend("b", "vm")
		got, err := x.pair("b").Advance(t.Context(), rec(3, "b", "b"))
		switch split := err == nil && arbiter.IsWon(rec(3, "b", "b"), got); {
		case told && split:
			t.Errorf("a and b go on: %v, %v", got, err)
		case !told && !split:
			t.Errorf("the rule isn't needed, or this test doesn't show it: %v, %v", got, err)
		}
	}
}
