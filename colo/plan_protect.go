package colo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// ProtectOptions tunes Protect.
type ProtectOptions struct {
	Mode blockrepl.Mode // empty: the quickest that is safe
	Node string         // by which peer; empty: by the VM's present one
}

// protectPlan brings a lone copy into COLO with a standby on the peer. The guest runs but for the moment of the switch; whatever fails, it
// runs on alone.
func (m *machine) protectPlan(o ProtectOptions) *Plan {
	var (
		peer    Peer
		to      NodeInfo
		reply   PrepareReply
		res     SyncResult
		way     syncWay
		begun   time.Time
		token   string
		attempt int64
		leave   func()
		was     *string // the VM's last peer, if it gets another one
	)
	rec, spec := m.info()
	c := m.current()
	steps := []Step{
		{Name: "check the peer", Do: func(ctx context.Context) (err error) {
			m.doubled.Store(false)
			var by *partnership
			if by, to, err = m.checkPeer(ctx, o.Node); err != nil {
				return err
			}
			peer = by.peer
			if err := m.catchUp(ctx, peer); err != nil || by == m.with() {
				return err
			}
			was = &rec.Peer
			return m.updateNow(ctx, func(v *state.VM) { v.Peer = by.info.Name }) // its loss is the VM's from here on
		}, Undo: func(context.Context) error {
			if was != nil {
				m.update(func(v *state.VM) { v.Peer = *was })
			}
			return nil
		}},
		{Name: "wait for its turn", Do: func(ctx context.Context) (err error) {
			leave, err = m.takeTurn(ctx)
			return err
		}},
		{
			Name: "prepare the standby",
			Do: func(ctx context.Context) (err error) {
				begun = time.Now()
				attempt = begun.UnixNano()
				media, err := m.n.mediaSums(ctx, spec)
				if err != nil {
					return err
				}
				if token, err = m.resyncToken(ctx, to.Name); err != nil {
					return err
				}
				reply, err = peer.Prepare(ctx, PrepareRequest{From: m.n.cfg.Name, ID: rec.ID, Spec: spec, Generation: m.record().Generation, Want: rec.Want, QEMU: m.n.qemu, Accel: m.n.cfg.Accel,
					Starter: m.n.cfg.startedBy(), Plain: m.n.cfg.Plain, MPTCP: m.n.multipath() == nil, Resync: token, Media: media, Attempt: attempt})
				if plain := len(reply.Endpoint.Key) == 0; err == nil && plain != m.n.cfg.Plain {
					err = &PeerMismatchError{"encryption of replication", encryption(m.n.cfg.Plain), encryption(plain)}
				}
				return err
			},
			Undo: func(ctx context.Context) error {
				if rec, _ := m.info(); behind(rec) {
					return nil // the peer's copy is the better one
				}
				if err := peer.Drop(ctx, DropRequest{m.record(), attempt}); err != nil { // it drops it by itself when it is asked for the next one
					m.log.Warn("the peer did not drop its standby", "err", err)
				}
				return nil
			},
		},
		{
			Name: "copy the disks",
			Do: func(ctx context.Context) error {
				var err error
				if way, err = m.syncWay(ctx, c, o, to.Name, reply); err != nil {
					return err
				}
				return m.syncDisks(ctx, c, way, to.Name, peer, token, reply.Endpoint)
			},
			Undo: func(ctx context.Context) error { return m.release(ctx, c) },
		},
		{Name: "connect the network comparison", Do: func(ctx context.Context) error {
			m.post(message{kind: DisksEqual})
			return c.Connect(ctx, reply.Endpoint)
		}},
		{Name: "copy the memory", Do: func(ctx context.Context) error { return c.CopyMemory(ctx, reply.Endpoint) }},
		{Name: "switch the disks", Do: func(ctx context.Context) (err error) {
			if res, err = c.SwitchDisks(ctx); err == nil {
				m.doubled.Store(true)
			}
			return err
		}},
		{Name: "start COLO", Do: func(ctx context.Context) error { return c.StartColo(ctx) }},
		{Name: "prove COLO", Do: func(ctx context.Context) error {
			res.Why, res.Took = way.why, time.Since(begun)
			m.mu.Lock()
			m.sync = &res
			m.mu.Unlock()
			m.emit(Event{Kind: "resync", State: m.State(), Text: res.String(), Fields: map[string]any{"mode": res.Mode, "copied": res.Copied, "last": res.Last}})
			return c.ProveColo(ctx)
		}},
	}
	count := len(steps)
	steps = append(steps, Step{Name: "count the peer's copy in", Do: func(ctx context.Context) error {
		got, err := m.admit(ctx, to.Name)
		if err != nil {
			return err
		}
		m.update(func(v *state.VM) {
			v.Resync, v.Peer = nil, to.Name
			if !behind(*v) {
				v.Base = &state.Base{Peer: to.Name, Generation: got.Generation}
			}
		})
		if err := peer.Confirm(ctx, got); err != nil { // it runs, but would not know after a loss of power that its disks are whole
			m.log.Warn("the peer was not told that it counts", "err", err)
			m.confirm()
		}
		return nil
	}})
	return &Plan{Kind: planProtect, Steps: steps, NoReturn: count, End: func() {
		if leave != nil {
			leave()
		}
	}}
}

// checkPeer finds the peer that is to protect the VM, and asks it whether it could, and both whether the arbiter answers. It changes nothing.
func (m *machine) checkPeer(ctx context.Context, name string) (by *partnership, to NodeInfo, err error) {
	if err = m.noBackup(); err != nil {
		return nil, to, err
	}
	if by, err = m.standbyBy(name); err != nil {
		return nil, to, err
	}
	if to, err = by.peer.Hello(ctx); err != nil {
		return nil, to, err
	}
	if err = m.n.compare(to); err != nil {
		return nil, to, err
	}
	if err = by.near(&m.n.cfg); err != nil {
		return nil, to, err
	}
	return by, to, m.arbiterAnswersBoth(ctx, by)
}

// admit makes the peer's copy one of those that may go on. It repeats itself while the arbiter can't be asked: COLO runs, the guest is well,
// only its protection is not yet certain. When it is interrupted nobody knows whether the arbiter has counted the peer in.
func (m *machine) admit(ctx context.Context, peer string) (arbiter.Record, error) {
	m.guard(ctx) // from here on this copy may lose its right to speak without being told
	// From here on, until it is certain whether the peer counts, this node must not believe that it is alone, also after a loss of power.
	done, err := m.ask(ctx)
	if err == nil { // a question of before that is noted now would take it back
		err = m.updateNow(ctx, func(v *state.VM) { v.Offered = peer })
		done()
	}
	if err != nil {
		return arbiter.Record{}, fmt.Errorf("%w: %w", errUndecided, err)
	}
	// The peer may have been counted in: when this is interrupted, not a word from then on. The arbiter's answer may take its time.
	stop := context.AfterFunc(ctx, func() { m.silence(m.n.ctx) })
	defer stop()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		got, err := m.advance(ctx, []string{m.n.cfg.Name, peer})
		switch {
		case errors.Is(err, errLost):
			return got, err
		case err == nil && stop():
			return got, nil
		case ctx.Err() != nil: // this copy is silent by now: who may speak is decided anew
			return got, fmt.Errorf("%w: %w", errUndecided, context.Cause(ctx))
		}
		m.log.Warn("the arbiter did not count the peer's copy in", "err", err)
		select {
		case <-ctx.Done():
			return got, fmt.Errorf("%w: %w", errUndecided, err)
		case <-time.After(wait):
		}
	}
}

// confirm tells the peer that its copy counts until it has heard, or this node's record is another one. Without an arbiter that is what its copy goes on by.
func (m *machine) confirm() {
	rec, p := m.record(), m.with()
	if len(rec.Members) < 2 || p == nil {
		return
	}
	m.n.wg.Go(func() {
		for {
			ctx, cancel := context.WithTimeout(m.n.ctx, cedeTimeout)
			err := p.peer.Confirm(ctx, rec)
			cancel()
			if err == nil {
				return
			}
			m.log.Debug("the peer does not know yet that its copy counts", "peer", p.info.Name, "err", err)
			select {
			case <-time.After(time.Second):
			case <-m.quit:
				return
			case <-m.n.ctx.Done():
				return
			}
			if s := m.State(); (s != Protected && s != Attaching) || !m.record().Equal(rec) {
				return
			}
		}
	})
}

// detachPlan ends protection on request.
func (m *machine) detachPlan() *Plan {
	var got arbiter.Record
	return &Plan{Kind: planDetach, NoReturn: 1, Steps: []Step{
		{Name: "ask whether the arbiter answers", Do: m.arbiterAnswers},
		{Name: "count the peer's copy out", Do: func(ctx context.Context) (err error) {
			if got, err = m.advance(ctx, []string{m.n.cfg.Name}); err != nil && !errors.Is(err, errLost) {
				return fmt.Errorf("%w: %w", errUndecided, err)
			}
			return err
		}},
		{Name: "drop the secondary", Do: func(ctx context.Context) error {
			if peer, _, err := m.partner(); err == nil {
				dctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				if err := peer.Drop(dctx, DropRequest{Record: got}); err != nil {
					m.log.Warn("the peer did not drop its secondary", "err", err)
				}
			}
			return nil
		}},
		{Name: "take replication down", Do: func(ctx context.Context) error {
			c := m.current()
			if c == nil {
				return errLost
			}
			if err := m.release(ctx, c); err != nil {
				return fmt.Errorf("%w: %w", errUndecided, err)
			}
			if err := m.unguard(ctx, c); err != nil {
				return fmt.Errorf("%w: %w", errUndecided, err)
			}
			return nil
		}},
	}}
}

// switchoverPlan gives the role to the peer. Nothing is lost: COLO's secondary can go on at any moment, so this copy is silenced, the arbiter
// told, this copy killed and the peer asked to go on, in this order.
func (m *machine) switchoverPlan() *Plan {
	var (
		peer Peer
		info NodeInfo
		got  arbiter.Record
	)
	c := m.current()
	return &Plan{Kind: planSwitchover, NoReturn: 3, Steps: []Step{
		{Name: "check the secondary", Do: func(ctx context.Context) (err error) {
			peer, info, err = m.checkSecondary(ctx)
			return err
		}},
		{Name: "force a checkpoint", Do: func(ctx context.Context) error {
			if err := c.Checkpoint(ctx); err != nil {
				return err
			}
			if m.guestIsOff() { // the peer would run a guest that is off, and not know it
				return errors.New("the guest has switched itself off")
			}
			return nil
		}},
		{
			Name: "cut the tap",
			Do:   func(ctx context.Context) error { return c.Cut(ctx) },
			Undo: func(ctx context.Context) error { return c.Join(ctx) },
		},
		{Name: "hand the role over", Do: func(ctx context.Context) (err error) {
			if got, err = m.advance(ctx, []string{info.Name}); err != nil && !errors.Is(err, errLost) {
				return fmt.Errorf("%w: %w", errUndecided, err)
			}
			return err
		}},
		{Name: "end this copy", Do: func(ctx context.Context) error {
			if err := m.discard(ctx); err != nil {
				return fmt.Errorf("%w: %w", errLost, err)
			}
			_, spec := m.info()
			m.update(both(setDisks(spec, false, 0), func(v *state.VM) { v.Role, v.Base = state.RoleNone, nil }))
			return nil
		}},
		{Name: "let the peer go on", Do: func(ctx context.Context) error {
			if err := peer.TakeOver(ctx, got); err != nil {
				// It finds out by itself: its channel is gone and the arbiter names it alone.
				m.log.Warn("the peer was not told to go on", "err", err)
			}
			return nil
		}},
	}}
}
