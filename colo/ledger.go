package colo

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// ledger writes to the store in order, from one goroutine, so that what must not wait for the disk (the state machine, a failover) doesn't.
// A plan that can wait asks for its intent to be durable before its first step.
type ledger struct {
	store Records
	log   *slog.Logger
	ch    chan entry
	quit  chan struct{}
	wg    sync.WaitGroup
	owed  []func(RecordsTx) error // could not be written, and nobody waits for it: tried again before anything else

	mu      sync.Mutex
	trouble error // why the store lacks something; nil when it doesn't
	lost    bool  // and it will not be tried again
}

type entry struct {
	write func(RecordsTx) error
	done  chan<- error // nil when nobody waits
	after func(error)  // nil, or called with the outcome before the next entry is written
}

// ledgerBuffer is how many writes may wait. A node writes a few dozen for a failover and nothing in between.
const ledgerBuffer = 4096

var errLedgerFull = errors.New("the state folder's disk does not keep up")

func newLedger(store Records, log *slog.Logger) *ledger {
	l := &ledger{store: store, log: log, ch: make(chan entry, ledgerBuffer), quit: make(chan struct{})}
	l.wg.Go(l.run)
	return l
}

func (l *ledger) run() {
	for {
		select {
		case e := <-l.ch:
			l.do(e)
			continue
		default:
		}
		var again <-chan time.Time
		if len(l.owed) > 0 {
			again = time.After(owedEvery)
		}
		select { // nothing waits: now the end counts too
		case e := <-l.ch:
			l.do(e)
		case <-again:
			_ = l.put(func(RecordsTx) error { return nil })
		case <-l.quit:
			return
		}
	}
}

// owedEvery is how often a store is tried again that lacks something.
const owedEvery = time.Second

// put writes what could not be written before, and then fn.
func (l *ledger) put(fn func(RecordsTx) error) error {
	if len(l.owed) == 0 {
		return l.store.Write(fn)
	}
	if err := l.store.Write(func(RecordsTx) error { return nil }); err != nil {
		return err
	}
	for len(l.owed) > 0 {
		var refused error
		err := l.store.Write(func(tx RecordsTx) error {
			refused = l.owed[0](tx)
			return refused
		})
		switch {
		case refused != nil: // it is about a VM, or a plan, that is no more
			l.log.Error("state was not written", "err", err)
		case err != nil:
			return err
		}
		l.owed = l.owed[1:]
	}
	l.note(nil, false)
	return l.store.Write(fn)
}

// note keeps why the store lacks something.
func (l *ledger) note(err error, lost bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = l.lost || lost
	if err != nil || !l.lost {
		l.trouble = err
	}
}

// Unwritten says why the state folder lacks something that this node knows; nil when it doesn't. A node that loses power then comes back with less than it
// knew, so no VM counts as protected by it. What could not be written is tried again; what was too much is not, until the node's next start.
func (n *Node) Unwritten() error { return n.ledger.lacks() }

// lacks says why the store lacks something that this node knows; nil when it doesn't.
func (l *ledger) lacks() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trouble
}

func (l *ledger) do(e entry) {
	err := l.put(e.write)
	if e.after != nil {
		e.after(err)
	}
	if e.done != nil {
		e.done <- err
	} else if err != nil {
		l.log.Error("state was not written", "err", err)
		full := len(l.owed) >= ledgerBuffer
		if !full {
			l.owed = append(l.owed, e.write)
		}
		l.note(err, full)
	}
}

// close writes what is left and ends the ledger. What is written later is lost.
func (l *ledger) close() {
	close(l.quit)
	l.wg.Wait()
}

func (l *ledger) write(fn func(RecordsTx) error) {
	select {
	case l.ch <- entry{write: fn}:
	default:
		l.log.Error("state was not written", "err", errLedgerFull)
		l.note(errLedgerFull, true)
	}
}

func (l *ledger) writeNow(ctx context.Context, fn func(RecordsTx) error) error {
	wait := l.begin(fn, nil)
	if wait == nil {
		return errLedgerFull
	}
	return wait(ctx)
}

// begin puts a write into the ledger's order and returns what waits for it, or nil when there is no room. after is called with the outcome, whoever
// waits.
func (l *ledger) begin(fn func(RecordsTx) error, after func(error)) (wait func(context.Context) error) {
	done := make(chan error, 1)
	select {
	case l.ch <- entry{fn, done, after}:
	default:
		return nil
	}
	return func(ctx context.Context) error {
		select {
		case err := <-done:
			return err
		case <-l.quit:
			return ErrClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
