package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// keptOperations is how many ended operations can still be read.
const keptOperations = 256

// runningOperations is how many operations of one VM may run at the same time. Those that run are never forgotten, so there must be an end to them.
const runningOperations = 16

// operations are those of this run of the daemon. They run on their own context: neither the caller's end nor the server's takes them back.
type operations struct {
	run  string // part of each id
	node string

	mu   sync.Mutex
	wg   sync.WaitGroup
	next int
	all  []*operation // oldest first
	// flush returns when all events that came before it have been observed.
	flush func()
}

type operation struct {
	Operation
	key    string // of the request that began it; empty if it had none
	cancel context.CancelFunc
	wanted bool // its cancelling
	ended  chan struct{}
}

func newOperations(run, node string) *operations {
	return &operations{run: run, node: node, flush: func() {}}
}

// begin starts an operation. With the key of one that was begun before, that one is returned: the request was sent again because its answer was lost.
func (o *operations) begin(op Operation, key string, do func(context.Context) error) (Operation, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if key != "" {
		for _, old := range o.all {
			if old.key == key && old.VM == op.VM && old.Kind == op.Kind && old.By == op.By {
				return old.clone(), nil
			}
		}
	}
	running := 0
	for _, e := range o.all {
		if e.VM == op.VM && e.State == Running {
			running++
		}
	}
	if running >= runningOperations {
		return Operation{}, apiErrorf(ErrBusy, "%s: %d operations of it run on %s already: wait for one's end, or cancel it", op.VM, running, o.node)
	}
	o.next++
	op.ID, op.State, op.Begun, op.Steps = fmt.Sprintf("%s-%d", o.run, o.next), Running, time.Now(), []OpStep{}
	op.Cancellable = cancellable(op.Kind)
	ctx, cancel := context.WithCancel(context.Background())
	e := &operation{Operation: op, key: key, cancel: cancel, ended: make(chan struct{})}
	o.all = append(o.all, e)
	o.prune()
	o.wg.Go(func() {
		defer cancel()
		err := do(ctx)
		o.flush()
		o.end(e, err)
	})
	return e.clone(), nil
}

// cancellable says whether an operation can be taken back. The others are over in moments, or halfway is worse than either end.
func cancellable(kind string) bool {
	switch kind {
	case "protect", "resync", "start", "verify", "backup", "export":
		return true
	}
	return false
}

func (o *operations) end(e *operation, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e.Ended, e.State, e.Progress, e.Cancellable = time.Now(), Done, nil, false
	text := ""
	if err != nil {
		text = err.Error()
		e.State = Failed
		if e.wanted {
			e.State = Cancelled
		}
		body, _ := describe(err, o.node, e.VM)
		e.Error = &body
	}
	e.endStep(e.Ended, text)
	close(e.ended)
}

// prune forgets the oldest ended operations beyond what is kept. The caller holds mu.
func (o *operations) prune() {
	for i := 0; len(o.all) > keptOperations && i < len(o.all); {
		if o.all[i].State == Running {
			i++
			continue
		}
		o.all = slices.Delete(o.all, i, i+1)
	}
}

func (o *operations) find(id string) (*operation, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.all {
		if e.ID == id {
			return e, nil
		}
	}
	if !strings.HasPrefix(id, o.run+"-") {
		return nil, apiErrorf(ErrNoOperation, "%q was not begun by this run of the daemon on %s, but by another node or before it was restarted", id, o.node)
	}
	return nil, apiErrorf(ErrNoOperation, "%q is not known on %s: the last %d are kept", id, o.node, keptOperations)
}

// get reads an operation, after waiting for its end or for ctx.
func (o *operations) get(ctx context.Context, id string, wait time.Duration) (Operation, error) {
	e, err := o.find(id)
	if err != nil {
		return Operation{}, err
	}
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-e.ended:
		case <-t.C:
		case <-ctx.Done():
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return e.clone(), nil
}

// list returns the operations of a VM, or all, oldest first.
func (o *operations) list(vm string) []Operation {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := []Operation{}
	for _, e := range o.all {
		if vm == "" || e.VM == vm {
			out = append(out, e.clone())
		}
	}
	return out
}

// stop cancels an operation and returns at once; its end tells what came of it.
func (o *operations) stop(id string) (Operation, error) {
	e, err := o.find(id)
	if err != nil {
		return Operation{}, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case e.State != Running:
		return Operation{}, apiErrorf(ErrNotCancellable, "%s has ended: %s", id, e.State)
	case !cancellable(e.Kind):
		return Operation{}, apiErrorf(ErrNotCancellable, "%s: a %s that has begun is carried through", id, e.Kind)
	}
	e.wanted = true
	e.cancel()
	return e.clone(), nil
}

// observe shows an event to the operations that it is about.
func (o *operations) observe(ev colo.Event) {
	if ev.VM == "" {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.all {
		if e.State == Running && e.VM == ev.VM {
			e.observe(ev)
		}
	}
}

// wait returns when all operations have ended.
func (o *operations) wait() { o.wg.Wait() }
