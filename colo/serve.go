package colo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// This file is the other end of Peer: what a node does when its partner asks.

type prepareArgs struct {
	PrepareRequest
	reply PrepareReply
}

func isUnreachable(err error) bool { return errors.Is(err, ErrPeerUnreachable) }

func (n *Node) servePrepare(ctx context.Context, r PrepareRequest) (PrepareReply, error) {
	if err := n.alive(ctx); err != nil {
		return PrepareReply{}, err
	}
	if err := n.compare(NodeInfo{QEMU: r.QEMU, Accel: r.Accel, Starter: r.Starter, Plain: r.Plain}); err != nil {
		return PrepareReply{}, err
	}
	r.Spec = r.Spec.clone() // a peer in the same process goes on reading its own
	m, err := n.remember(r)
	if err != nil {
		return PrepareReply{}, err
	}
	args := &prepareArgs{PrepareRequest: r}
	if err := m.request(ctx, ReqPrepare, args); err != nil {
		return PrepareReply{}, err
	}
	return args.reply, nil
}

// remember finds or makes this node's record of a VM that the peer wants to be protected by it.
func (n *Node) remember(r PrepareRequest) (*machine, error) {
	if err := r.Spec.Validate(); err != nil {
		return nil, err
	}
	if err := n.candidate(r.Spec); err != nil {
		return nil, err
	}
	if err := n.admit(r.Spec, true); err != nil {
		return nil, err
	}
	n.mu.Lock()
	m := n.machines[r.Spec.Name]
	n.mu.Unlock()
	if m != nil {
		rec, _ := m.info()
		switch {
		case rec.ID != r.ID:
			return nil, fmt.Errorf("%s: %w, and it is another one", r.Spec.Name, ErrVMExists)
		case r.Generation < rec.Generation:
			return nil, fmt.Errorf("%s: %w: %d, here %d", r.Spec.Name, ErrGenerationOld, r.Generation, rec.Generation)
		}
		return m, nil
	}
	release, err := n.reserve(r.Spec.Name)
	if err != nil {
		return nil, err
	}
	defer release()
	return n.create(r.Spec, r.ID, arbiter.Record{Generation: r.Generation, Members: []string{r.From}})
}

// preparePlan makes a standby. Its disks count as incomplete from before the primary can write to them until COLO is proven.
func (m *machine) preparePlan(a *prepareArgs) *Plan {
	var c Copy
	return &Plan{Kind: planPrepare, Steps: []Step{
		{Name: "drop what is left here", Do: m.discard},
		{Name: "check disks, bridges and QEMU", Do: func(ctx context.Context) error {
			if rec, _ := m.info(); len(offline(rec)) > 0 {
				return m.offlineError(rec)
			}
			if err := m.noBackup(); err != nil {
				return err
			}
			err := m.n.launcher.Check(ctx, a.Spec)
			if errors.Is(err, blockrepl.ErrWrongSize) { // the disk was resized on the peer: what is new here is about to be written
				if err = m.n.launcher.Grow(ctx, a.Spec); err == nil {
					err = m.n.launcher.Check(ctx, a.Spec)
				}
			}
			if err != nil && !errors.Is(err, ErrImageMissing) {
				return err
			}
			return m.n.compareMedia(ctx, a.Spec, a.Media)
		}},
		{Name: "mark the disks incomplete", Do: func(ctx context.Context) error {
			rec, _ := m.info()
			a.reply.SyncedAt, a.reply.Resync = syncedAt(rec, a.Spec), rec.Target
			text, err := MarshalSpec(a.Spec)
			if err != nil {
				return err
			}
			m.mu.Lock()
			m.spec, m.unread = a.Spec, nil
			m.mu.Unlock()
			return m.updateNow(ctx, both(setDisks(a.Spec, false, 0), func(v *state.VM) {
				v.Spec, v.Role, v.Peer, v.Base, v.Resync, v.Want, v.Target = text, state.RoleSecondary, a.From, nil, nil, a.Want, a.Resync
				setRecord(a.Generation, []string{a.From})(v)
			}))
		}},
		{Name: "make missing images", Do: func(ctx context.Context) error {
			made, err := m.n.launcher.CreateImages(ctx, a.Spec)
			if len(made) > 0 {
				a.reply.SyncedAt, a.reply.Resync, a.reply.New = 0, "", len(made) == len(a.Spec.mirrored())
			}
			return err
		}},
		{
			Name: "launch the standby",
			Do: func(ctx context.Context) (err error) {
				c, err = m.launch(ctx, LaunchRequest{Spec: a.Spec, ID: a.ID, Standby: true})
				return err
			},
			Undo: m.discard,
		},
		{Name: "listen", Do: func(ctx context.Context) (err error) {
			if all := m.n.partnerships(); len(all) > 1 && !partnerOf(all, a.From).alive() { // lost before it was this VM's peer, so nobody would end the standby
				return fmt.Errorf("no heartbeat of %s, which asks for a standby", a.From)
			}
			if a.reply.Endpoint, err = m.n.endpoint(a.Spec, a.From, a.MPTCP); err != nil {
				return err
			}
			return c.Listen(ctx, a.reply.Endpoint)
		}},
	}}
}

// syncedAt is the generation at which all disks here were last equal to the primary's and since which only COLO wrote to them.
func syncedAt(rec state.VM, spec *Spec) uint64 {
	var gen uint64
	for i, d := range spec.mirrored() {
		s, ok := rec.Disks[d.Name]
		if !ok || !s.InSync || s.Written || s.Size != int64(d.Size) || (i > 0 && s.Generation != gen) {
			return 0
		}
		gen = s.Generation
	}
	return gen
}

// serving finds the VM that a peer's record is about. The record must not be older than the one known here.
func (n *Node) serving(ctx context.Context, rec arbiter.Record) (*machine, error) {
	if err := n.alive(ctx); err != nil {
		return nil, err
	}
	n.mu.Lock()
	var found *machine
	for _, m := range n.machines {
		if have, _ := m.info(); have.ID == rec.VM {
			found = m
		}
	}
	n.mu.Unlock()
	if found == nil {
		return nil, fmt.Errorf("%s: %w (%s)", rec.VM, ErrNoVM, n.cfg.Name)
	}
	if have, _ := found.info(); rec.Generation < have.Generation {
		return nil, fmt.Errorf("%w: %d, here %d", ErrGenerationOld, rec.Generation, have.Generation)
	}
	return found, nil
}

// serveDrop takes the record over only together with the state machine's consent: a copy that goes on alone must not lose its place to it.
func (n *Node) serveDrop(ctx context.Context, r DropRequest) error {
	m, err := n.serving(ctx, r.Record)
	if err != nil {
		return err
	}
	if err := m.request(ctx, ReqDrop, r); err != nil {
		return err
	}
	return m.noted(ctx)
}

// noted returns when all that is known of the VM is durable. What a node promises its peer must outlive its power.
func (m *machine) noted(ctx context.Context) error { return m.updateNow(ctx, func(*state.VM) {}) }

// remembered is how many attempts of the peer a node tells from new ones.
const remembered = 32

// late says whether a call of the peer was overtaken by a later one. What it is to do must not be done then.
func (m *machine) late(args any) error {
	switch a := args.(type) {
	case *prepareArgs:
		if a.Attempt != 0 && slices.Contains(m.attempts, a.Attempt) {
			return fmt.Errorf("%s: %w: this standby was asked for before", m.name, ErrGenerationOld)
		}
	case DropRequest:
		if n := len(m.attempts); a.Attempt != 0 && n > 0 && m.attempts[n-1] != a.Attempt {
			return fmt.Errorf("%s: %w: the standby here is another one", m.name, ErrGenerationOld)
		}
	}
	return nil
}

// heed notes what a call of the peer says that is about to be carried out.
func (m *machine) heed(args any) {
	switch a := args.(type) {
	case *prepareArgs:
		if m.attempts = append(m.attempts, a.Attempt); len(m.attempts) > remembered {
			m.attempts = m.attempts[1:]
		}
	case DropRequest:
		m.update(setRecord(a.Generation, a.Members))
	case arbiter.Record:
		m.update(setRecord(a.Generation, a.Members))
	}
}

func (n *Node) serveConfirm(ctx context.Context, rec arbiter.Record) error {
	m, err := n.serving(ctx, rec)
	if err != nil {
		return err
	}
	if err := m.unreadable(); err != nil {
		return err
	}
	_, spec := m.info()
	confirmed := both(setRecord(rec.Generation, rec.Members), both(setDisks(spec, true, rec.Generation), both(setWritten(spec, false), func(v *state.VM) { v.Target = "" })))
	if err := m.updateNow(ctx, func(v *state.VM) {
		if v.Role == state.RoleSecondary && rec.Generation >= v.Generation { // it may have gone on, or ended, meanwhile
			confirmed(v)
		}
	}); err != nil {
		return err
	}
	if have, _ := m.info(); have.Generation != rec.Generation || !slices.Equal(have.Members, rec.Members) {
		return fmt.Errorf("%s: %w: the copy of generation %d has ended, or has gone on", m.name, ErrGenerationOld, rec.Generation)
	}
	return nil
}

// serveSums hashes for a resync that this node's standby is the target of. A request of an earlier one is about disks that have changed.
func (n *Node) serveSums(ctx context.Context, r SumsRequest) (SumsReply, error) {
	m, err := n.machine(r.VM)
	if err != nil {
		return SumsReply{}, err
	}
	if err := n.alive(ctx); err != nil {
		return SumsReply{}, err
	}
	rec, _ := m.info()
	c := m.current()
	s := m.State()
	resyncs := s == Standby && r.Resync != "" && rec.Target == r.Resync
	verifies := s == Secondary && r.Resync == "" && rec.Generation == r.Generation
	if c == nil || !resyncs && !verifies {
		return SumsReply{}, &UnexpectedEventError{VM: r.VM, State: s, Event: "sums"}
	}
	sums, err := c.Sums(ctx, blockrepl.Part{Disk: r.Disk, Key: r.Key, Offset: r.Offset, Length: r.Length})
	return SumsReply{Sums: sums, Keyed: true}, err
}

func (n *Node) serveTakeOver(ctx context.Context, rec arbiter.Record) error {
	if !slices.Equal(rec.Members, []string{n.cfg.Name}) {
		return fmt.Errorf("a VM can't be handed over with a record of %v", rec.Members)
	}
	m, err := n.serving(ctx, rec)
	if err != nil {
		return err
	}
	if err := m.request(ctx, ReqTakeOver, rec); err != nil {
		return err
	}
	_, err = n.Wait(ctx, m.name, func(s Status) bool { return s.State != FailingOver }) // it may have begun by itself, a moment ago
	return err
}

func (n *Node) serveReportDead(ctx context.Context, r Report) error {
	return n.report(ctx, r, PeerDead, "says that its copy is dead")
}

func (n *Node) serveReportChannelLost(ctx context.Context, r Report) error {
	return n.report(ctx, r, ChannelLost, "says that the replication has ended")
}

// report turns a peer's news into an event, if there is a copy here that it could concern.
func (n *Node) report(ctx context.Context, r Report, kind EventKind, text string) error {
	m, err := n.machine(r.VM)
	if err != nil {
		return err
	}
	if err := n.alive(ctx); err != nil {
		return err
	}
	if err := m.known(); err != nil {
		return err
	}
	if m.unseen() {
		return fmt.Errorf("%s: %w: a QEMU of it may run on %s, which can't ask it", m.name, ErrPeerUnreachable, n.cfg.Name)
	}
	if p := m.with(); len(n.partnerships()) > 1 && (p == nil || p.info.Name != r.From) {
		return fmt.Errorf("%s on %s: %w: %s has no part in it any more", r.VM, n.cfg.Name, ErrNothingToGoOn, r.From)
	}
	off := m.final() && m.State() != SwitchingOver // there the peer is meant to go on
	if silent := m.ends(); silent != nil && !off { // whatever has happened to the other copy changes nothing for this one any more
		select {
		case <-silent:
			return fmt.Errorf("%s on %s: %w", r.VM, n.cfg.Name, ErrNothingToGoOn)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if m.current() == nil && !off {
		return fmt.Errorf("%s on %s: %w", r.VM, n.cfg.Name, ErrNothingToGoOn)
	}
	if rec, _ := m.info(); r.Generation >= rec.Generation {
		m.post(message{kind: kind, text: r.From + " " + text, gen: r.Generation})
	}
	if off && kind == ChannelLost {
		return fmt.Errorf("%s on %s: %w", r.VM, n.cfg.Name, ErrGuestOff)
	}
	return nil
}

func (n *Node) serveInquire(ctx context.Context, vm string) (PeerVM, error) {
	m, err := n.machine(vm)
	if err != nil {
		return PeerVM{}, err
	}
	if err := n.alive(ctx); err != nil {
		return PeerVM{}, err
	}
	if err := m.known(); err != nil {
		return PeerVM{}, err
	}
	rec, _ := m.info()
	out := PeerVM{State: m.State(), Generation: rec.Generation, Members: rec.Members, Want: rec.Want, Lacks: len(offline(rec)) > 0, Running: m.unseen()}
	if c := m.current(); c != nil {
		// Within what those who ask for a claim have the patience for.
		actx, cancel := context.WithTimeout(ctx, n.cfg.HeartbeatInterval)
		defer cancel()
		out.Running, out.Answers = true, c.Alive(actx) == nil
	}
	return out, nil
}
