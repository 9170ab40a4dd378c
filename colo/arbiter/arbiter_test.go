package arbiter_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// TestOneWinner is what it is all for: whatever claims are made, in whatever order, with whatever answers lost,
//
//  1. generations only rise, by one;
//  2. in each generation everybody who is told anything about the winner is told the same;
//  3. who claims alone and has won isn't contradicted before a member took others in;
//  4. a node that isn't a member never becomes one by its own claim.
func TestOneWinner(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		mem := arbiter.NewMemory()
		nodes := []string{"a", "b", "c"}
		var current arbiter.Record
		winners := map[uint64]arbiter.Record{}
		for range rapid.IntRange(1, 40).Draw(t, "calls") {
			node := rapid.SampledFrom(nodes).Draw(t, "node")
			fault := rapid.SampledFrom([]arbiter.Fault{arbiter.Reachable, arbiter.Reachable, arbiter.Unreachable, arbiter.ReplyLost}).Draw(t, "fault")
			members := rapid.SliceOfNDistinct(rapid.SampledFrom(nodes), 1, 3, rapid.ID).Draw(t, "members")
			want := arbiter.Record{VM: "vm", Generation: current.Generation + uint64(rapid.IntRange(0, 2).Draw(t, "step")), Members: members, By: node}
			if want.Generation == 0 {
				want.Generation = 1
			}
			mem.SetFault(node, fault)
			got, err := mem.View(node).Advance(ctx, want)
			if (fault != arbiter.Reachable) != errors.Is(err, arbiter.ErrUnreachable) {
				t.Fatalf("fault %d: %v", fault, err)
			}
			mem.SetFault(node, arbiter.Reachable)
			now, nowErr := mem.View(node).Get(ctx, "vm")
			if nowErr != nil && !errors.Is(nowErr, arbiter.ErrNoRecord) {
				t.Fatal(nowErr)
			}
			if err == nil && !got.Equal(now) {
				t.Fatalf("answer %v, stored %v", got, now)
			}
			if !now.Equal(current) {
				if now.Generation != current.Generation+1 || (current.Generation > 0 && !current.Has(now.By)) || !now.Equal(want) || fault == arbiter.Unreachable {
					t.Fatalf("%v became %v on the claim %v", current, now, want)
				}
			}
			if w, ok := winners[now.Generation]; ok && !w.Equal(now) {
				t.Fatalf("generation %d was won by %v and by %v", now.Generation, w, now)
			}
			winners[now.Generation], current = now, now
			if err == nil && (arbiter.Judge(want, got) == arbiter.Won) != got.Equal(want) {
				t.Fatalf("verdict %v on %v for %v", arbiter.Judge(want, got), got, want)
			}
		}
	})
}

func TestJudge(t *testing.T) {
	rec := func(g uint64, by string, members ...string) arbiter.Record {
		return arbiter.Record{VM: "vm", Generation: g, Members: members, By: by}
	}
	want := rec(5, "a", "a")
	for _, c := range []struct {
		got  arbiter.Record
		want arbiter.Verdict
	}{
		{rec(5, "a", "a"), arbiter.Won},
		{rec(5, "a", "a", "b"), arbiter.Lost}, // an own claim of that number, but another one: not what is asked for now
		{rec(5, "b", "b"), arbiter.Lost},
		{rec(6, "a", "a", "b"), arbiter.Lost},
		{rec(4, "b", "b"), arbiter.Lost},
		{rec(4, "b", "a", "b"), arbiter.Behind}, // Decide would have stored the claim: not an answer of ours
		{rec(3, "b", "b"), arbiter.Behind},
		{arbiter.Record{}, arbiter.Unsure},
		{arbiter.Record{VM: "other", Generation: 5, Members: []string{"a"}, By: "a"}, arbiter.Unsure},
	} {
		if v := arbiter.Judge(want, c.got); v != c.want {
			t.Errorf("%v for %v is %q, should be %q", c.got, want, v, c.want)
		}
	}
}

func TestRecordsShareNoMemory(t *testing.T) {
	mem, members := arbiter.NewMemory(), []string{"b", "a"}
	got, err := mem.View("a").Advance(t.Context(), arbiter.Record{VM: "vm", Generation: 1, Members: members, By: "a"})
	if err != nil {
		t.Fatal(err)
	}
	members[0], got.Members[0] = "x", "y"
	if now, err := mem.View("a").Get(t.Context(), "vm"); err != nil || fmt.Sprint(now.Members) != "[a b]" {
		t.Errorf("%v, %v", now, err)
	}
}

func TestSilentArbiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := arbiter.NewMemory()
		mem.SetFault("a", arbiter.Silent)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := mem.View("a").Get(ctx, "vm")
		if !errors.Is(err, arbiter.ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		// A request that hangs is answered when the arbiter comes back.
		done := make(chan error)
		claim := arbiter.Record{VM: "vm", Generation: 1, Members: []string{"a"}, By: "a"}
		go func() {
			_, err := mem.View("a").Advance(t.Context(), claim)
			done <- err
		}()
		synctest.Wait()
		mem.SetReachable("a", true)
		if err := <-done; err != nil {
			t.Error(err)
		}
		mem.SetReachable("a", false)
		if _, err := mem.View("a").Get(t.Context(), "vm"); !errors.Is(err, arbiter.ErrUnreachable) {
			t.Error(err)
		}
	})
}

// The answer is lost, the claim isn't: who asks again has won, and the other one was told so all along.
func TestLostReply(t *testing.T) {
	mem := arbiter.NewMemory()
	a, b := mem.View("a"), mem.View("b")
	claim := func(node string) arbiter.Record {
		return arbiter.Record{VM: "vm", Generation: 1, Members: []string{node}, By: node}
	}
	mem.SetFault("a", arbiter.ReplyLost)
	if _, err := a.Advance(t.Context(), claim("a")); !errors.Is(err, arbiter.ErrUnreachable) {
		t.Fatal(err)
	}
	if got, err := b.Advance(t.Context(), claim("b")); err != nil || arbiter.Judge(claim("b"), got) != arbiter.Lost {
		t.Errorf("b: %v, %v", got, err)
	}
	mem.SetReachable("a", true)
	if got, err := a.Advance(t.Context(), claim("a")); err != nil || arbiter.Judge(claim("a"), got) != arbiter.Won {
		t.Errorf("a, again: %v, %v", got, err)
	}
}

// A node lost its peer and asks whether it may go on alone.
func Example() {
	shared := arbiter.NewMemory()
	east, west := shared.View("east"), shared.View("west")
	ctx := context.Background()
	_, _ = east.Advance(ctx, arbiter.Record{VM: "db", Generation: 1, Members: []string{"east", "west"}, By: "east"})

	// The link breaks; both claim to go on alone.
	claim := func(a arbiter.Arbiter, node string) {
		want := arbiter.Record{VM: "db", Generation: 2, Members: []string{node}, By: node}
		got, err := a.Advance(ctx, want)
		switch {
		case errors.Is(err, arbiter.ErrUnreachable):
			fmt.Println(node, "holds its output and asks again")
		case err != nil:
			fmt.Println(node, "holds and calls a person:", err)
		default:
			fmt.Println(node, arbiter.Judge(want, got))
		}
	}
	claim(west, "west")
	claim(east, "east")
	shared.SetReachable("west", false)
	claim(west, "west")
	// Output:
	// west won
	// east lost
	// west holds its output and asks again
}
