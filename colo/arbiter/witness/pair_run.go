package witness

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// Run watches the witnesses and hands seats over, until ctx ends. Its owner waits for it.
func (p *Pair) Run(ctx context.Context) error {
	tick := time.NewTicker(p.opt.Interval)
	defer tick.Stop()
	for {
		if err := p.round(ctx); err != nil && ctx.Err() == nil {
			p.opt.Log.Error("can't look after the witnesses", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round looks at both witnesses and then at each VM.
func (p *Pair) round(ctx context.Context) error {
	began := time.Now()
	err := p.acquaint(ctx)
	p.mu.Lock()
	answered := p.answered
	p.mu.Unlock()
	vms, lerr := p.ledger.vms()
	err = errors.Join(err, lerr)
	for _, vm := range vms {
		err = errors.Join(err, p.tend(ctx, vm, func(i int) (alive, dead bool) {
			return !answered[i].Before(began), began.Sub(answered[i]) >= p.opt.HoldDown
		}))
	}
	return err
}

// acquaint asks both witnesses of which VMs this node is a member, and begins a page for those it doesn't know: another node may have taken it in, and
// without a page it could promise nothing. That one of them is silent is no error here.
func (p *Pair) acquaint(ctx context.Context) error {
	var found [2]membership
	var errs [2]error
	var wait sync.WaitGroup
	for i, w := range p.svc {
		wait.Go(func() {
			if found[i], errs[i] = w.mine(ctx); !errors.Is(errs[i], arbiter.ErrUnreachable) {
				p.mu.Lock()
				p.answered[i], p.instance[i] = time.Now(), found[i].Instance
				p.mu.Unlock()
			}
		})
	}
	wait.Wait()
	var err error
	for i := range found {
		if !errors.Is(errs[i], arbiter.ErrUnreachable) {
			err = errors.Join(err, errs[i])
		}
		for _, vm := range found[i].VMs {
			if _, known, lerr := p.ledger.load(vm); lerr != nil || known {
				err = errors.Join(err, lerr)
			} else if _, gerr := p.Get(ctx, vm); gerr != nil && !errors.Is(gerr, arbiter.ErrUnreachable) && !errors.Is(gerr, arbiter.ErrNoRecord) {
				err = errors.Join(err, gerr)
			}
		}
	}
	return err
}

// tend gives up the seat of a VM if it is dead or if others have given it up, keeps the promise in repair until the seat has moved, and withdraws it
// when the seat is back before that.
func (p *Pair) tend(ctx context.Context, vm string, state func(place int) (alive, dead bool)) error {
	ctx, cancel := context.WithTimeout(ctx, p.opt.Timeout)
	defer cancel()
	unlock, err := p.lock(ctx, vm)
	if err != nil {
		return err
	}
	defer unlock()
	pg, found, err := p.ledger.load(vm)
	if err != nil || !found {
		return err
	}
	seat, other, ok := p.places(ctx, vm, pg.Seat, state)
	if !ok {
		return nil
	}
	alive, dead := false, true
	if seat >= 0 {
		alive, dead = state(seat)
	}
	if up, _ := state(other); !up {
		return nil
	}
	if pg.Given != "" {
		if alive {
			return p.retake(ctx, vm, &pg)
		}
		_, err := p.promise(ctx, vm, &pg)
		return err
	}
	ans, err := p.send(ctx, other, vm, request{Op: opNote, Sight: &pg.Seat})
	switch {
	case err != nil:
		return err
	case pg.follow(ans):
		return p.save(vm, pg)
	}
	if err := p.told(vm, &pg); err != nil {
		return err
	}
	switch {
	case ans.Seen != nil && ans.Seen.Record == nil && pg.Seat.older(*ans.Seen):
		if pg.learn(*ans.Seen); !pg.open() {
			return p.drop(vm) // it was forgotten by another node
		}
		return p.save(vm, pg)
	case !dead && (len(ans.Given) == 0 || ans.Seen.Tenure != pg.Seat.Tenure):
		return nil
	}
	pg.Given, pg.Seq = ans.Instance, max(pg.Seq, ans.Seq)+1
	if err := p.save(vm, pg); err != nil {
		return err
	}
	p.opt.Log.Warn("the witness of a VM is given up", "vm", vm, "silent", dead, "others", ans.Given)
	_, err = p.promise(ctx, vm, &pg)
	return err
}

// places says where the seat is and where promises about it go. seat is -1 if it is neither of the two witnesses, which is so after one was replaced.
func (p *Pair) places(ctx context.Context, vm string, s sight, state func(place int) (alive, dead bool)) (seat, other int, ok bool) {
	if seat, ok = p.place(s.Seat); ok {
		return seat, 1 - seat, true
	}
	var up []int
	for i := range p.svc {
		if alive, _ := state(i); !alive {
			continue
		}
		if _, err := p.send(ctx, i, vm, request{Op: opGet, Look: true}); err == nil {
			up = append(up, i)
		}
	}
	if seat, ok = p.place(s.Seat); ok {
		return seat, 1 - seat, true
	}
	switch len(up) {
	case 0:
		return 0, 0, false
	case 1: // the silent one is the seat, or will never say what it was
		return 1 - up[0], up[0], true
	}
	// All nodes must choose the same one: where a promise is already, or the lesser instance.
	both, err := p.look(ctx, vm)
	if err != nil {
		return 0, 0, false
	}
	for i, a := range both {
		if a.Seen != nil && a.Seen.Tenure == s.Tenure && len(a.Given) > 0 {
			return -1, i, true
		}
	}
	if both[1].Instance < both[0].Instance {
		return -1, 1, true
	}
	return -1, 0, true
}

// lock keeps calls about one VM apart: a page is read, sent and written as one.
func (p *Pair) lock(ctx context.Context, vm string) (unlock func(), err error) {
	if unlock, err = p.locks.Lock(ctx, vm); err != nil {
		return nil, unreachable(err)
	}
	return unlock, nil
}

func (p *Pair) drop(vm string) error {
	if err := p.ledger.drop(vm); err != nil {
		return unreachable(fmt.Errorf("own ledger: %w", err))
	}
	return nil
}

func (p *Pair) save(vm string, pg page) error {
	if err := p.ledger.save(vm, pg); err != nil {
		return unreachable(fmt.Errorf("own ledger: %w", err))
	}
	return nil
}

// send asks the witness at a place once, and notes that it answered.
func (p *Pair) send(ctx context.Context, i int, vm string, req request) (answer, error) {
	ans, err := p.svc[i].once(ctx, vm, req)
	if errors.Is(err, arbiter.ErrUnreachable) {
		return ans, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answered[i] = time.Now()
	switch {
	case err == nil:
		p.instance[i] = ans.Instance
	case errors.Is(err, ErrOtherInstance):
		p.instance[i] = ""
	}
	return ans, err
}

// place returns where a witness is, as far as is known.
func (p *Pair) place(instance string) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.instance[:], instance)
	return max(i, 0), i >= 0
}

// find is place, after asking those that aren't known.
func (p *Pair) find(ctx context.Context, vm, instance string) (int, error) {
	if i, ok := p.place(instance); ok {
		return i, nil
	}
	var failed error
	for i := range p.svc {
		if _, err := p.send(ctx, i, vm, request{Op: opGet, Look: true}); err != nil {
			failed = errors.Join(failed, err)
		}
		if i, ok := p.place(instance); ok {
			return i, nil
		}
	}
	return 0, unreachable(errors.Join(fmt.Errorf("witness %s, which is to be asked about %s, isn't among the two", instance, vm), failed))
}

// look asks both at the same time.
func (p *Pair) look(ctx context.Context, vm string) (both [2]answer, err error) {
	var errs [2]error
	var wait sync.WaitGroup
	for i := range p.svc {
		wait.Go(func() { both[i], errs[i] = p.send(ctx, i, vm, request{Op: opGet, Look: true}) })
	}
	wait.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, arbiter.ErrUnreachable) {
			return both, err
		}
	}
	if err := errors.Join(errs[:]...); err != nil {
		return both, unreachable(err)
	}
	if both[0].Instance == both[1].Instance {
		return both, fmt.Errorf("%w: both witnesses are one and the same", ErrSplit)
	}
	return both, nil
}
