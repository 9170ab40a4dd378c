package arbitertest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// Conformance checks the rule case by case. view returns one and the same arbiter as the nodes a and b see it; vm is a VM that it doesn't know yet.
func Conformance(t *testing.T, view func(node string) arbiter.Arbiter, vm string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a, b := view("a"), view("b")
	rec := func(g uint64, by string, members ...string) arbiter.Record {
		return arbiter.Record{VM: vm, Generation: g, Members: members, By: by}
	}
	advance := func(what string, arb arbiter.Arbiter, next arbiter.Record, want arbiter.Verdict, stored arbiter.Record) {
		t.Helper()
		got, err := arb.Advance(ctx, next)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		if v := arbiter.Judge(next, got); v != want || !got.Equal(stored) {
			t.Errorf("%s: %v with %v, want %v with %v", what, v, got, want, stored)
		}
		if now, err := b.Get(ctx, vm); err != nil || !now.Equal(stored) {
			t.Errorf("%s: stored is %v (%v), want %v", what, now, err, stored)
		}
	}
	fails := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}

	_, err := a.Get(ctx, vm)
	fails("get of nothing", err, arbiter.ErrNoRecord)
	_, err = a.Advance(ctx, rec(2, "a", "a"))
	fails("generation 2 of nothing", err, arbiter.ErrNoRecord)
	for what, r := range map[string]arbiter.Record{
		"generation 0": rec(0, "a", "a"), "no members": rec(1, "a"), "nobody's claim": rec(1, "", "a"), "nameless member": rec(1, "a", "a", ""),
		"no VM": {Generation: 1, Members: []string{"a"}, By: "a"}, "claim for somebody else": rec(1, "b", "b"),
	} {
		_, err := a.Advance(ctx, r)
		fails(what, err, arbiter.ErrInvalid)
	}
	_, err = a.Get(ctx, vm)
	fails("get after refused claims", err, arbiter.ErrNoRecord)

	g1 := rec(1, "a", "a", "b")
	advance("first", a, g1, arbiter.Won, g1)
	advance("first, members in another order", a, rec(1, "a", "b", "a", "b"), arbiter.Won, g1)
	advance("first, by the other one", b, rec(1, "b", "a", "b"), arbiter.Lost, g1)
	advance("two ahead", a, rec(3, "a", "a"), arbiter.Behind, g1)

	g2 := rec(2, "b", "b")
	advance("b goes on alone", b, g2, arbiter.Won, g2)
	advance("b asks again", b, g2, arbiter.Won, g2)
	advance("a is too late", a, rec(2, "a", "a"), arbiter.Lost, g2)
	advance("a asks for what b has, by itself", a, rec(2, "a", "b"), arbiter.Lost, g2)
	advance("a isn't a member", a, rec(3, "a", "a"), arbiter.Lost, g2)

	g3 := rec(3, "b", "a", "b")
	advance("b takes a back", b, g3, arbiter.Won, g3)
	advance("b's old claim", b, g2, arbiter.Lost, g3)
	g4 := rec(4, "a", "a")
	advance("a goes on alone", a, g4, arbiter.Won, g4)

	fails("forget of an old generation", a.Forget(ctx, vm, 3), arbiter.ErrConflict)
	if err := a.Forget(ctx, vm, 4); err != nil {
		t.Errorf("forget: %v", err)
	}
	if err := a.Forget(ctx, vm, 4); err != nil {
		t.Errorf("forget again: %v", err)
	}
	_, err = b.Get(ctx, vm)
	fails("get after forget", err, arbiter.ErrNoRecord)
	advance("begun anew", b, rec(1, "b", "b"), arbiter.Won, rec(1, "b", "b"))

	ended, end := context.WithCancel(ctx)
	end()
	_, err = a.Get(ended, vm)
	fails("get with an ended context", err, arbiter.ErrUnreachable)
	fails("get with an ended context", err, context.Canceled)
}
