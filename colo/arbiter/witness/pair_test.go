package witness

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/arbitertest"
)

func TestPairConformance(t *testing.T) {
	x := newTwins(t, "a", "b")
	arbitertest.Conformance(t, func(n string) arbiter.Arbiter { return x.pair(n) }, "vm")
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
			if pg, _, err := x.pair("a").ledger.load("vm"); err != nil || pg.Seat.Seat != x.w[first].instance {
				t.Errorf("%+v, %v", pg, err)
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
		old := maps.Clone(x.w[0].entries)
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
		x.won("a", rec(1, "a", "a", "b"))
		x.tend("b", "vm")
		x.won("a", rec(2, "a", "a"))
		x.w[0].set("a", arbiter.ReplyLost)
		x.holds("a", rec(3, "a", "a", "b"))
		x.w[0].set("a", arbiter.Unreachable)
		x.tend("a", "vm")
		x.won("b", rec(4, "b", "b"))
		got, err := x.pair("a").Advance(t.Context(), rec(3, "a", "a"))
		switch split := err == nil && arbiter.Judge(rec(3, "a", "a"), got) == arbiter.Won; {
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
		switch split := err == nil && arbiter.Judge(rec(3, "b", "b"), got) == arbiter.Won; {
		case told && split:
			t.Errorf("a and b go on: %v, %v", got, err)
		case !told && !split:
			t.Errorf("the rule isn't needed, or this test doesn't show it: %v, %v", got, err)
		}
	}
}

// gone returns twins whose VM was the business of a alone, and whose seat a has moved to w2. The others believe that it is w1, and reach it.
func gone(t *testing.T) *twins {
	x := newTwins(t, "a", "b", "c")
	x.won("a", rec(1, "a", "a"))
	for _, n := range []string{"b", "c"} {
		if _, err := x.pair(n).Get(t.Context(), "vm"); err != nil {
			t.Fatal(err)
		}
	}
	x.w[0].set("a", arbiter.Unreachable)
	x.tend("a", "vm")
	x.won("a", rec(2, "a", "a"))
	return x
}

// TestStrangersAtTheOldSeat: who is no member can forget a record and begin a new one, also at a witness that doesn't decide any more. The members of
// what comes of that are none.
func TestStrangersAtTheOldSeat(t *testing.T) {
	x := gone(t)
	x.w[1].set("c", arbiter.Unreachable)
	if err := x.pair("c").Forget(t.Context(), "vm", 1); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Fatal(err)
	}
	x.holds("c", rec(1, "c", "b", "c"))
	if got, err := x.pair("b").Get(t.Context(), "vm"); err != nil || !got.Equal(rec(2, "a", "a")) {
		t.Errorf("b reads %v, %v", got, err)
	}
	if got, err := x.pair("b").Advance(t.Context(), rec(2, "b", "b")); err != nil || arbiter.Judge(rec(2, "b", "b"), got) != arbiter.Lost {
		t.Errorf("b: %v, %v", got, err)
	}
}

// TestRefusalsOfTheOldSeat: they are no facts.
func TestRefusalsOfTheOldSeat(t *testing.T) {
	t.Run("conflict", func(t *testing.T) {
		x := gone(t)
		if err := x.pair("a").Forget(t.Context(), "vm", 2); err != nil {
			t.Fatal(err)
		}
		if err := x.pair("c").Forget(t.Context(), "vm", 7); err != nil {
			t.Errorf("c forgets what is forgotten: %v", err)
		}
	})
	t.Run("no record", func(t *testing.T) {
		x := gone(t)
		x.w[1].set("c", arbiter.Unreachable)
		if err := x.pair("c").Forget(t.Context(), "vm", 1); !errors.Is(err, arbiter.ErrUnreachable) {
			t.Fatal(err)
		}
		if got, err := x.pair("b").Advance(t.Context(), rec(2, "b", "b")); err != nil || arbiter.Judge(rec(2, "b", "b"), got) != arbiter.Lost {
			t.Errorf("b: %v, %v", got, err)
		}
	})
}

// interrupted is a way to a witness on which something happens before a request of some kind arrives for the first time.
type interrupted struct {
	service
	op   op
	what *func()
}

func (i interrupted) once(ctx context.Context, vm string, req request) (answer, error) {
	if what := *i.what; req.Op == i.op && what != nil {
		*i.what = nil
		what()
	}
	return i.service.once(ctx, vm, req)
}

// TestSeatMovesBeforeTheConfirmation: what a stranger did at the old seat was taken over, and superseded, before it could ask whether it counts. It
// isn't done a second time: the answer to that would say that the first was never done.
func TestSeatMovesBeforeTheConfirmation(t *testing.T) {
	x := newTwins(t, "b", "c")
	what := func() {
		if got, err := x.pair("b").Get(t.Context(), "vm"); err != nil || !got.Equal(rec(1, "c", "b", "c")) {
			t.Fatalf("b reads %v, %v", got, err)
		}
		x.won("b", rec(2, "b", "b"))
		x.w[0].set("b", arbiter.Unreachable)
		x.tend("b", "vm")
	}
	c := x.pair("c")
	for i := range c.svc {
		c.svc[i] = interrupted{c.svc[i], opNote, &what}
	}
	x.holds("c", rec(1, "c", "b", "c"))
	if got, err := c.Advance(t.Context(), rec(1, "c", "b", "c")); err != nil || !got.Equal(rec(2, "b", "b")) || what != nil {
		t.Errorf("c asks again: %v, %v", got, err)
	}
}

// TestClaimsOfBefore: a claim that arrives when the record has been begun anew is nothing that its claimer still knows of.
func TestClaimsOfBefore(t *testing.T) {
	for _, refused := range []bool{true, false} {
		x := newTwins(t, "a", "b", "c")
		if !refused { // what would happen if it were carried out
			x.w[0].tamper = func(m *memory, vm string, req *request, _ string) (*answer, func(*answer)) {
				req.Since = m.entries[vm].Since
				return nil, nil
			}
		}
		x.won("a", rec(1, "a", "a", "b"))
		pg, _, err := x.pair("a").ledger.load("vm")
		if err != nil {
			t.Fatal(err)
		}
		next := rec(2, "a", "a", "b")
		x.w[0].set("a", arbiter.Unreachable)
		x.holds("a", next) // it is on its way
		x.w[0].set("a", arbiter.Reachable)
		x.won("a", rec(2, "a", "a"))
		if err := x.pair("c").Forget(t.Context(), "vm", 2); err != nil {
			t.Fatal(err)
		}
		x.won("c", rec(1, "c", "a"))
		for _, n := range []string{"a", "b"} {
			if got, err := x.pair(n).Get(t.Context(), "vm"); err != nil || !got.Equal(rec(1, "c", "a")) {
				t.Fatalf("%s reads %v, %v", n, got, err)
			}
		}
		_, _ = line{x.w[0], "a"}.once(t.Context(), "vm", request{Op: opAdvance, Tenure: pg.Seat.Tenure, Since: pg.Seat.Since, Instance: pg.Seat.Seat, Next: &next})
		x.w[0].set("a", arbiter.Unreachable)
		x.tend("a", "vm")
		x.won("a", rec(2, "a", "a"))
		got, err := x.pair("b").Advance(t.Context(), rec(3, "b", "b"))
		switch split := err == nil && arbiter.Judge(rec(3, "b", "b"), got) == arbiter.Won; {
		case refused && (split || err != nil):
			t.Errorf("b: %v, %v", got, err)
		case !refused && !split:
			t.Errorf("the rule isn't needed, or this test doesn't show it: %v, %v", got, err)
		}
	}
}

// TestSeatMovesAfterLostAnswers: neither a withdrawal that came though its answer was lost, nor a Forget that didn't, keeps the seat from moving.
func TestSeatMovesAfterLostAnswers(t *testing.T) {
	x := newTwins(t, "a", "b")
	x.won("a", rec(1, "a", "a"))
	if _, err := x.pair("b").Get(t.Context(), "vm"); err != nil {
		t.Fatal(err)
	}
	x.w[0].set("b", arbiter.Unreachable)
	if err := x.pair("b").Forget(t.Context(), "vm", 1); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Fatal(err)
	}
	x.w[0].set("b", arbiter.Reachable)
	x.won("a", rec(2, "a", "a", "b"))
	x.w[0].set("a", arbiter.Unreachable)
	x.tend("a", "vm")
	x.w[0].set("a", arbiter.Reachable)
	a, what := x.pair("a"), func() { x.w[1].set("a", arbiter.ReplyLost) }
	svc := a.svc
	a.svc[1] = interrupted{svc[1], opWithdraw, &what}
	x.holds("a", rec(3, "a", "a"))
	if e := x.w[1].entries["vm"]; e.Promises["a"].Given || what != nil {
		t.Fatalf("the withdrawal hasn't come: %+v", e)
	}
	a.svc = svc
	x.w[1].set("a", arbiter.Reachable)
	x.witnessDown(0, arbiter.Unreachable)
	for range 3 {
		x.tend("a", "vm")
		x.tend("b", "vm")
	}
	x.won("b", rec(3, "b", "b"))
}
