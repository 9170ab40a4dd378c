package api

import (
	"context"
	"errors"
	"testing"
)

// TestRunningOperations: so many operations of one VM run at the same time, and not one more until one has ended. Another VM's are not touched by that, nor is a request that
// is sent again.
func TestRunningOperations(t *testing.T) {
	o := newOperations("run", "n1")
	hold := make(chan struct{})
	wait := func(context.Context) error { <-hold; return nil }
	for range runningOperations - 1 {
		if _, err := o.begin(Operation{VM: "web", Kind: "protect"}, "", wait); err != nil {
			t.Fatal(err)
		}
	}
	last, err := o.begin(Operation{VM: "web", Kind: "start"}, "key", wait)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.begin(Operation{VM: "web", Kind: "stop"}, "", wait); !errors.Is(err, ErrBusy) {
		t.Errorf("one too many: %v", err)
	}
	if again, err := o.begin(Operation{VM: "web", Kind: "start"}, "key", wait); err != nil || again.ID != last.ID {
		t.Errorf("sent again: %v %v", again.ID, err)
	}
	if _, err := o.begin(Operation{VM: "db", Kind: "stop"}, "", wait); err != nil {
		t.Errorf("another VM's: %v", err)
	}
	close(hold)
	o.wait()
	if _, err := o.begin(Operation{VM: "web", Kind: "stop"}, "", wait); err != nil {
		t.Errorf("after their end: %v", err)
	}
	o.wait()
}
