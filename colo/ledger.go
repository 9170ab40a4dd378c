package colo

import (
	"context"
	"errors"
	"log/slog"
	"sync"
)

// ledger writes to the store in order, from one goroutine, so that what must not wait for the disk (the state machine, a failover) doesn't.
// A plan that can wait asks for its intent to be durable before its first step.
type ledger struct {
	store Records
	log   *slog.Logger
	ch    chan entry
	quit  chan struct{}
	wg    sync.WaitGroup
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
		select { // nothing waits: now the end counts too
		case e := <-l.ch:
			l.do(e)
		case <-l.quit:
			return
		}
	}
}

func (l *ledger) do(e entry) {
	err := l.store.Write(e.write)
	if e.after != nil {
		e.after(err)
	}
	if e.done != nil {
		e.done <- err
	} else if err != nil {
		l.log.Error("state was not written", "err", err)
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
