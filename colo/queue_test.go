package colo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
)

// TestQueue: of those that wait the highest priority is next, of equal ones the first that came; everybody knows his place; what may be sent is shared by those that run; who gives up
// makes room.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{limits: ResyncLimits{Parallel: 2, Rate: 1000}}
		places, shares := map[string]int{}, map[string]int64{}
		var order []string
		turns := map[string]*turn{}
		enter := func(ctx context.Context, vm string, priority int) chan error {
			done := make(chan error, 1)
			tn := &turn{vm: vm, priority: priority, moved: func(p int) { places[vm] = p }, share: func(s int64) { shares[vm] = s }}
			turns[vm] = tn
			go func() {
				err := q.enter(ctx, tn)
				q.mu.Lock()
				if err == nil {
					order = append(order, vm)
				}
				q.mu.Unlock()
				done <- err
			}()
			synctest.Wait()
			return done
		}
		enter(t.Context(), "a", 0)
		if shares["a"] != 1000 {
			t.Errorf("alone it may send %d", shares["a"])
		}
		enter(t.Context(), "b", 0)
		if shares["a"] != 500 || shares["b"] != 500 {
			t.Errorf("two share %v", shares)
		}
		enter(t.Context(), "c", 0)
		enter(t.Context(), "d", 0)
		enter(t.Context(), "high", 5)
		enter(t.Context(), "low", -1)
		ctx, cancel := context.WithCancelCause(t.Context())
		left := enter(ctx, "leaves", 9)
		want := map[string]int{"leaves": 1, "high": 2, "c": 3, "d": 4, "low": 5}
		if fmt.Sprint(places) != fmt.Sprint(want) {
			t.Errorf("places %v, want %v", places, want)
		}
		given := errors.New("given up")
		cancel(given)
		if err := <-left; !errors.Is(err, given) {
			t.Errorf("it has left with %v", err)
		}
		if places["high"] != 1 {
			t.Errorf("the next one is at place %d", places["high"])
		}
		for _, vm := range []string{"a", "b", "high", "c", "d", "low"} {
			q.leave(turns[vm])
			q.leave(turns[vm]) // does nothing
			synctest.Wait()
		}
		if want := []string{"a", "b", "high", "c", "d", "low"}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
		if shares["low"] != 1000 {
			t.Errorf("the last one may send %d", shares["low"])
		}
	})
}
