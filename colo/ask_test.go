package colo

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestAskOneAtATime: what is asked of the arbiter waits for the answer to what was asked before, but not longer than it has time.
func TestAskOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{asking: make(chan struct{}, 1)}
		done, err := m.ask(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.ask(ctx); err == nil {
			t.Error("two questions at once")
		}
		done()
		if done, err = m.ask(t.Context()); err != nil {
			t.Error(err)
		}
		done()
	})
}
