package colo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// Verdict answers the question "am I protected right now?".
type Verdict struct {
	Protected bool   `json:"protected"`
	Reason    string `json:"reason"` // why not; empty when protected
}

// Status is a VM as this node sees it.
type Status struct {
	VM          string          `json:"vm"`
	Node        string          `json:"node"`
	State       State           `json:"state"`
	Why         string          `json:"why"` // it is in that state
	Since       time.Time       `json:"since"`
	Role        state.Role      `json:"role"`
	Verdict     Verdict         `json:"verdict"`
	Generation  uint64          `json:"generation"`
	Members     []string        `json:"members"` // nodes whose copies may go on
	Peer        string          `json:"peer,omitempty"`
	PeerAlive   bool            `json:"peer_alive"`
	PID         int             `json:"pid"` // of QEMU; 0 when none runs here
	Checkpoints CheckpointStats `json:"checkpoints"`
	Replication *Replication    `json:"replication,omitempty"` // nil when there is none, or when it can't be told
	Disks       []DiskStatus    `json:"disks"`
	Overlays    *OverlayStatus  `json:"overlays,omitempty"` // of a secondary
	Plan        *PlanStatus     `json:"plan,omitempty"`
	Progress    *Progress       `json:"progress,omitempty"`
	Resync      *SyncResult     `json:"resync,omitempty"` // the last one
	Verify      *state.Verify   `json:"verify,omitempty"` // the last comparison of both halves
	LastError   string          `json:"last_error,omitempty"`
	Want        string          `json:"want,omitempty"`     // of its owner: stopped, running or protected
	Outlook     string          `json:"outlook,omitempty"`  // what the node is about to do by itself, or waits for
	GivenUp     string          `json:"given_up,omitempty"` // why recovery has stopped: a person is needed
}

// DiskStatus is this node's half of a disk.
type DiskStatus struct {
	Name       string `json:"name"`
	Size       Size   `json:"size"`
	InSync     bool   `json:"in_sync"`           // it holds all that is current
	Generation uint64 `json:"generation"`        // the last one in which it was current
	Offline    string `json:"offline,omitempty"` // why it is out of service
	// ReadOnly is an image that is not mirrored; InSync then says that it is there, and Size is its file's.
	ReadOnly bool `json:"read_only,omitempty"`
	// SHA256 is a read-only image's content as it was last compared; empty if it was not since the daemon has begun, or the file has changed.
	SHA256 string `json:"sha256,omitempty"`
}

// Status tells how a VM stands here. It asks the arbiter when the VM is protected, so that the verdict is true now.
func (n *Node) Status(ctx context.Context, vm string) (Status, error) {
	m, err := n.machine(vm)
	if err != nil {
		return Status{}, err
	}
	s := m.status()
	s.Replication = m.replication(ctx, s.State)
	s.Verdict = m.verdict(ctx, s)
	return s, nil
}

func (m *machine) status() Status {
	alive := m.peerAlive()
	_, spec := m.info()
	media := m.n.mediaStatus(spec) // without the lock: a file system that hangs must not hold the engine up
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{
		VM: m.name, Node: m.n.cfg.Name, State: m.state, Why: m.why, Since: m.since, Role: m.rec.Role, Generation: m.rec.Generation,
		Members: slices.Clone(m.rec.Members), Peer: m.rec.Peer, PeerAlive: alive, Plan: m.plan, Progress: m.prog, Resync: m.sync, LastError: m.lastErr,
		Verify: m.rec.Verify, Want: m.rec.Want, Outlook: cmp.Or(m.stuck, m.outlook), GivenUp: m.givenUp,
	}
	if m.copy != nil {
		s.PID, s.Checkpoints = m.copy.PID(), m.copy.Stats()
	}
	if c, ok := m.copy.(interface{ overlayStatus() *OverlayStatus }); ok {
		s.Overlays = c.overlayStatus()
	}
	for _, d := range m.spec.Disks {
		if d.ReadOnly {
			s.Disks = append(s.Disks, media[d.Name])
			continue
		}
		have := m.rec.Disks[d.Name]
		whole := have.InSync && slices.Contains(m.rec.Members, m.n.cfg.Name)
		s.Disks = append(s.Disks, DiskStatus{Name: d.Name, Size: d.Size, InSync: whole, Generation: have.Generation, Offline: have.Offline})
	}
	return s
}

// verdict is never better than what is proven at this moment.
func (m *machine) verdict(ctx context.Context, s Status) Verdict {
	not := func(format string, args ...any) Verdict { return Verdict{Reason: fmt.Sprintf(format, args...)} }
	switch {
	case s.State == Syncing && s.Outlook != "":
		return not("%s: %s", s.State, s.Outlook)
	case s.State != Protected && s.State != Secondary:
		return not("%s", s.State)
	}
	m.mu.Lock()
	delay := time.Duration(m.spec.Protection.CheckpointDelay)
	m.mu.Unlock()
	switch age := time.Since(s.Checkpoints.Last); {
	case s.Checkpoints.Count == 0:
		return not("no checkpoint yet")
	case !s.Checkpoints.Running.IsZero() && time.Since(s.Checkpoints.Running) > m.n.cfg.HangTimeout/2:
		return not("a checkpoint has not ended for %s", time.Since(s.Checkpoints.Running).Round(time.Millisecond))
	case age > delay+m.n.cfg.HangTimeout:
		return not("no checkpoint for %s", age.Round(time.Millisecond))
	case !s.PeerAlive:
		return not("the peer's node is silent")
	case len(s.Members) < 2:
		return not("the secondary is not yet counted in")
	}
	if err := m.n.ledger.lacks(); err != nil {
		return not("the state folder on %s lacks what this node knows: %v", m.n.cfg.Name, err)
	}
	for _, d := range s.Disks {
		if d.Offline != "" {
			return not("this node's half of disk %s is out of service: %s", d.Name, d.Offline)
		}
	}
	if m.n.cfg.Arbiter == nil {
		return not("no arbiter is configured: only proof or a person promotes the secondary")
	}
	ctx, cancel := context.WithTimeout(ctx, verdictTimeout)
	defer cancel()
	peer := make(chan string, 1)
	go func() { peer <- m.peerLacks(ctx, s.State) }()
	rec, _ := m.info()
	held, err := m.n.cfg.Arbiter.Get(ctx, rec.ID)
	var other error
	if err == nil {
		other = m.arbiterThere(ctx, m.with(), held)
	}
	if lack := <-peer; lack != "" {
		return not("%s", lack)
	}
	switch now := m.State(); {
	case now != s.State:
		return not("%s", now)
	case errors.Is(err, arbiter.ErrNoRecord):
		return not("the arbiter has no record of this VM: if it has lost its data, coloctl vm restore-record %s", m.name)
	case err != nil:
		return not("the arbiter does not answer: %v", err)
	case held.Generation != rec.Generation || !held.Has(m.n.cfg.Name) || len(held.Members) < 2:
		return not("the arbiter is at generation %d of %v", held.Generation, held.Members)
	case other != nil:
		return not("%v", other)
	}
	return Verdict{Protected: true}
}

// verdictTimeout bounds the questions behind a verdict.
const verdictTimeout = time.Second

// peerLacks asks the peer, now, why its copy could not go on if this node were lost at this moment; empty if it could. Heartbeats and checkpoints would tell of a peer that has
// just been lost only later.
func (m *machine) peerLacks(ctx context.Context, here State) string {
	p, info, err := m.partner()
	if err != nil {
		return err.Error()
	}
	want := Secondary
	if here == Secondary {
		want = Protected
	}
	for {
		rec, _ := m.info()
		there, err := p.Inquire(ctx, m.name)
		switch {
		case err != nil:
			return fmt.Sprintf("%s does not answer: %v", info.Name, err)
		case there.State != want:
			return fmt.Sprintf("the copy on %s is %s", info.Name, there.State)
		case there.Generation != rec.Generation || len(there.Members) < 2:
			return fmt.Sprintf("%s does not know yet that its copy counts: it is at generation %d of %v", info.Name, there.Generation, there.Members)
		case there.Answers:
			return ""
		}
		select { // it was given little time to answer: a busy host may take more
		case <-time.After(m.n.cfg.HeartbeatInterval):
		case <-ctx.Done():
			return fmt.Sprintf("the QEMU on %s does not answer", info.Name)
		}
	}
}

// Wait returns as soon as ok is true of the VM's status, without its verdict. It looks again at every change of the VM's state or progress.
func (n *Node) Wait(ctx context.Context, vm string, ok func(Status) bool) (Status, error) {
	m, err := n.machine(vm)
	if err != nil {
		return Status{}, err
	}
	for {
		m.mu.Lock()
		changed := m.changed
		m.mu.Unlock()
		s := m.status()
		if ok(s) {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s, ctx.Err()
		case <-n.ctx.Done():
			return s, ErrClosed
		}
	}
}
