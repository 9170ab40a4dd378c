package fence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
)

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw)), err
}

// begin keeps the calls about one VM apart.
func (a *Arbiter) begin(ctx context.Context, vm string) (context.Context, func(), error) {
	if vm == "" {
		return nil, nil, fmt.Errorf("%w: no VM named", arbiter.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(ctx, a.opt.Timeout)
	unlock, err := a.locks.Lock(ctx, vm)
	if err != nil {
		cancel()
		return nil, nil, unreachable(err)
	}
	return ctx, func() { unlock(); cancel() }, nil
}

func (a *Arbiter) takeOff(vm string) (f *flight, land func()) {
	f = &flight{phase: sending}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flights[vm] = f
	return f, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.flights, vm)
	}
}

func (a *Arbiter) set(f *flight, p phase) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f.phase = p
}

// exchange sends a message once.
func (a *Arbiter) exchange(ctx context.Context, m Message) (Reply, error) {
	if err := context.Cause(ctx); err != nil {
		return Reply{}, err
	}
	a.mu.Lock()
	a.seq++
	m.Session, m.Seq = a.store.session, a.seq
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, a.opt.Attempt)
	defer cancel()
	r, err := a.opt.Exchange.Exchange(ctx, m)
	if err == nil || errors.Is(err, ErrAnswered) {
		a.heard()
	}
	if r.Have != nil && (r.Have.VM != m.VM || r.Have.Validate() != nil) {
		return Reply{}, fmt.Errorf("%w: %v", ErrAnswered, r.Have)
	}
	return r, err
}

// heard ends the proof that a fencing was: the peer is on again.
func (a *Arbiter) heard() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fenced = false
}

// errChanged is for the callers' loops.
var errChanged = errors.New("the record has changed meanwhile")

// swap replaces what is kept, if the record is still the one that the decision was made on.
func (a *Arbiter) swap(vm string, was, k kept) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.swapLocked(vm, was, k)
}

func (a *Arbiter) swapLocked(vm string, was, k kept) error {
	now, err := a.store.load(vm)
	if err != nil {
		return unreachable(err)
	}
	if !now.same(was) {
		return unreachable(errChanged)
	}
	if err := a.store.save(vm, k); err != nil {
		return unreachable(err)
	}
	return nil
}

// same says whether two are of the same record.
func (k kept) same(o kept) bool {
	return k.Epoch == o.Epoch && deref(k.Record).Equal(*deref(o.Record))
}

// word is what the other node says of its record.
type word struct {
	record *arbiter.Record
	epoch  uint64
	sure   bool
}

func (m Message) said() word { return word{m.Have, m.Epoch, m.Sure} }
func (r Reply) said() word   { return word{r.Have, r.Epoch, r.Sure} }

// merge compares the peer's record with the own one. The newer one of two is the newest there is, because every change is stored by the
// node that made it, and both are here to tell. Where the peer has none that is so only if somebody is sure.
func (a *Arbiter) merge(vm string, w word) (kept, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mergeLocked(vm, w, true)
}

// mergeLocked is merge. Only a reply says that what was sent before it has been dealt with.
func (a *Arbiter) mergeLocked(vm string, w word, reply bool) (kept, error) {
	k, err := a.store.load(vm)
	if err != nil {
		return kept{}, unreachable(err)
	}
	out := k
	if reply {
		out.Offered, out.Forgetting = nil, false
		delete(a.unheard, vm)
	}
	switch mine, have := k.Record, w.record; {
	case w.epoch == k.Epoch && mine == nil && have == nil:
	case w.epoch > k.Epoch, w.epoch == k.Epoch && mine == nil:
		out = kept{Record: have, Epoch: w.epoch}
		if have != nil && (w.sure || !have.Has(a.opt.Node)) {
			out.Boot = a.opt.Boot
		}
	case mine == nil:
	case have == nil:
		// A peer that was never told, or has lost its file. It can't confirm anything.
	case w.epoch < k.Epoch:
		out.Boot = a.opt.Boot
	case mine.Equal(*have):
		out.Boot, out.Untold = a.opt.Boot, false
	case a.newer(*have, *mine):
		if !mine.Has(a.opt.Peer) && have.By != a.opt.Node {
			return kept{}, fmt.Errorf("%w: %s here, %s there", ErrSplit, mine, have)
		}
		out = kept{Record: have, Epoch: k.Epoch, Boot: a.opt.Boot}
	case a.newer(*mine, *have):
		out.Boot = a.opt.Boot
	default:
		return kept{}, fmt.Errorf("%w: %s here, %s there", ErrSplit, mine, have)
	}
	if out.same(k) && out.Boot == k.Boot && out.Untold == k.Untold && out.Offered == k.Offered && out.Forgetting == k.Forgetting {
		return out, nil
	}
	if err := a.store.save(vm, out); err != nil {
		return kept{}, unreachable(err)
	}
	return out, nil
}

// newer compares generations. Of two records of the same one, that which leaves the other one's node out was made after a fencing, and the other one by
// the fenced node, before it could tell.
func (a *Arbiter) newer(x, y arbiter.Record) bool {
	if x.Generation != y.Generation {
		return x.Generation > y.Generation
	}
	return x.By != y.By && !x.Has(y.By) && y.Has(x.By)
}

// Receive answers a message of the peer. from is who sent it, for certain. An error means that it isn't for this arbiter.
func (a *Arbiter) Receive(ctx context.Context, from string, m Message) (Reply, error) {
	switch {
	case from != a.opt.Peer:
		return Reply{}, fmt.Errorf("%w: a message from %q, and the peer is %q", arbiter.ErrInvalid, from, a.opt.Peer)
	case m.VM == "":
		return Reply{}, fmt.Errorf("%w: no VM named", arbiter.ErrInvalid)
	}
	for _, r := range []*arbiter.Record{m.Have, m.Next} {
		if r != nil && (r.VM != m.VM || r.Validate() != nil) {
			return Reply{}, fmt.Errorf("%w: %v", arbiter.ErrInvalid, r)
		}
	}
	if m.Kind == kindStore {
		if m.Next == nil {
			return Reply{}, fmt.Errorf("%w: nothing to store", arbiter.ErrInvalid)
		}
		if err := a.valid(*m.Next, from); err != nil {
			return Reply{}, err
		}
		if refused := a.consent(ctx, *m.Next); refused != nil {
			a.heard()
			return Reply{Refused: refused.Error()}, nil
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fenced = false
	at := [2]uint64{m.Session, m.Seq}
	if last := a.seen[m.VM]; at[0] < last[0] || at[0] == last[0] && at[1] <= last[1] {
		return Reply{Refused: "it is late"}, nil
	}
	if err := context.Cause(ctx); err != nil {
		return Reply{}, err
	}
	a.seen[m.VM] = at
	if a.job != nil || a.busy(m) {
		return Reply{Busy: true}, nil
	}
	if unsure, err := a.unsure(m); err != nil || unsure {
		return Reply{Busy: unsure}, err
	}
	return a.answer(m)
}

// consent asks, without the lock, whether this node may be left out.
func (a *Arbiter) consent(ctx context.Context, next arbiter.Record) error {
	if a.opt.Consent == nil || next.Has(a.opt.Node) {
		return nil
	}
	a.mu.Lock()
	k, err := a.store.load(next.VM)
	a.mu.Unlock()
	if err != nil || !deref(k.Record).Has(a.opt.Node) {
		return err
	}
	return a.opt.Consent(ctx, next)
}

// busy says whether a message must wait for an own change. When both nodes change the same record at once, the lesser name goes first.
func (a *Arbiter) busy(m Message) bool {
	f := a.flights[m.VM]
	if f == nil || f.phase == decided {
		return false
	}
	return f.phase == fencing || a.opt.Node < a.opt.Peer
}

// unsure says whether a change must wait until this node has found out what became of an own one. The peer may have agreed to that after it sent this,
// and a message that was under way the whole time doesn't say so. Only one of the two waits, as in busy.
func (a *Arbiter) unsure(m Message) (bool, error) {
	if m.Kind == kindCompare || a.opt.Node > a.opt.Peer {
		return false, nil
	}
	k, err := a.store.load(m.VM)
	if err != nil {
		return false, err
	}
	if k.Offered == nil && !k.Forgetting && !a.unheard[m.VM] {
		return false, nil
	}
	if !a.asking[m.VM] && a.ctx.Err() == nil {
		a.asking[m.VM] = true
		a.wg.Go(func() { a.findOut(m.VM) })
	}
	return true, nil
}

// findOut asks the peer once what became of an own change.
func (a *Arbiter) findOut(vm string) {
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.asking, vm)
	}()
	ctx, done, err := a.begin(a.ctx, vm)
	if err != nil {
		return // the peer asks again
	}
	defer done()
	a.mu.Lock()
	k, err := a.store.load(vm)
	a.mu.Unlock()
	if err != nil {
		return
	}
	if r, err := a.exchange(ctx, a.message(kindCompare, vm, k, Message{})); err == nil && !r.Busy && r.Refused == "" {
		_, err = a.merge(vm, r.said())
		if err != nil {
			a.opt.Log.Warn("what became of a change isn't known", "vm", vm, "err", err)
		}
	}
}

func (a *Arbiter) answer(m Message) (Reply, error) {
	k, err := a.mergeLocked(m.VM, m.said(), false)
	if err != nil {
		return Reply{Refused: err.Error()}, nil
	}
	switch m.Kind {
	case kindCompare:
	case kindStore:
		stored, changed, err := arbiter.Decide(k.Record, *m.Next)
		if err != nil {
			return Reply{Refused: err.Error()}, nil
		}
		if changed {
			k = kept{Record: &stored, Epoch: k.Epoch, Boot: a.opt.Boot}
			if err := a.store.save(m.VM, k); err != nil {
				return Reply{Refused: err.Error()}, nil
			}
		}
	case kindForget:
		if k.Record != nil && k.Record.Generation == m.Generation {
			k = kept{Epoch: k.Epoch + 1}
			if err := a.store.save(m.VM, k); err != nil {
				return Reply{Refused: err.Error()}, nil
			}
		}
	default:
		return Reply{Refused: fmt.Sprintf("unknown message %q", m.Kind)}, nil
	}
	return Reply{Have: k.Record, Epoch: k.Epoch, Sure: a.current(k)}, nil
}

// job is one fencing.
type job struct {
	done chan struct{}
	err  error
}

// errPeerBack ends a fencing before it began.
var errPeerBack = errors.New("the peer answers again")

// cutOff fences the peer, or joins the fencing that is under way, or returns at once if the last one still stands.
func (a *Arbiter) cutOff(ctx context.Context, vm string) error {
	a.mu.Lock()
	if a.fenced {
		a.mu.Unlock()
		return nil
	}
	if err := a.ctx.Err(); err != nil {
		a.mu.Unlock()
		return err
	}
	j := a.job
	if j == nil {
		j = &job{done: make(chan struct{})}
		a.job = j
		a.wg.Go(func() { a.fence(j, vm) })
	}
	a.mu.Unlock()
	select {
	case <-j.done:
		return j.err
	case <-ctx.Done():
		return fmt.Errorf("%w (%w)", ErrFencing, context.Cause(ctx))
	}
}

func (a *Arbiter) fence(j *job, vm string) {
	ctx, cancel := context.WithTimeout(a.ctx, a.opt.FenceTimeout)
	defer cancel()
	err := a.fenceAfterDelay(ctx, vm)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fenced = err == nil
	a.job, j.err = nil, err
	close(j.done)
}

func (a *Arbiter) fenceAfterDelay(ctx context.Context, vm string) error {
	if a.opt.Delay > 0 {
		t := time.NewTimer(a.opt.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if _, err := a.exchange(ctx, Message{Kind: kindCompare, VM: vm}); err == nil || errors.Is(err, ErrAnswered) {
			return errPeerBack
		}
	}
	a.opt.Log.Warn("fencing the peer", "peer", a.opt.Peer, "vm", vm)
	var failed error
	for _, f := range a.opt.Fencers {
		err := f.Fence(ctx)
		if err == nil {
			a.opt.Log.Warn("the peer is proven to be off", "peer", a.opt.Peer)
			return nil
		}
		failed = errors.Join(failed, err)
	}
	a.opt.Log.Error("fencing failed", "peer", a.opt.Peer, "err", failed)
	return fmt.Errorf("fencing %s: %w", a.opt.Peer, failed)
}
