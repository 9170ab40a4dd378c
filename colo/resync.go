package colo

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/state"
)

// Progress is how far a long operation has come.
type Progress struct {
	What   string         `json:"what"`
	Mode   blockrepl.Mode `json:"mode,omitempty"`
	Disk   string         `json:"disk,omitempty"`
	Done   int64          `json:"done"` // bytes, over all disks
	Total  int64          `json:"total"`
	Rate   int64          `json:"rate"`             // bytes a second, lately; 0 at first
	ETA    time.Duration  `json:"eta"`              // 0 when not known
	Limit  int64          `json:"limit,omitempty"`  // bytes a second for each disk; 0 is none
	Paused bool           `json:"paused,omitempty"` // by a person
}

// String is what a resync did, for people.
func (r SyncResult) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s resync: %d bytes sent", r.Mode, r.Copied)
	if r.Compared > 0 {
		fmt.Fprintf(&b, ", %d of %d compared differed", r.Differed, r.Compared)
	}
	if r.Last > 0 {
		fmt.Fprintf(&b, "; %d of them while the guest stood still for %s", r.Last, r.LastTook.Round(time.Microsecond))
	}
	return b.String()
}

// A resync goes on where it was interrupted when three things hold. The source's QEMU has not ended: it has the record of what differs. The
// target's disks were written by nothing but this resync: both nodes keep its id, the target until anything else writes there. And all that the
// comparison found equal was durable on the target when it was read, which it is because the target makes its images durable before it
// launches a standby, and because blockrepl counts what it sends as not sent until COLO has proven it. So power may fail on the target at any time;
// when it fails on the source the record is gone, and the comparison begins anew.

// resyncToken is the id under which the peer's disks are about to be written: that of the resync that was interrupted, if there is one to this
// peer, otherwise a new one. It is durable here before the peer learns it.
func (m *machine) resyncToken(ctx context.Context, peer string) (string, error) {
	if rec, _ := m.info(); rec.Resync != nil && rec.Resync.Peer == peer {
		return rec.Resync.ID, nil
	}
	r := &state.Resync{ID: rand.Text(), Peer: peer}
	return r.ID, m.updateNow(ctx, func(v *state.VM) { v.Resync = &state.Resync{ID: r.ID, Peer: r.Peer} })
}

// syncWay is how the disks are made equal, and why so.
type syncWay struct {
	mode blockrepl.Mode
	why  string
	from map[string]int64 // of a comparison that goes on
}

// syncWay chooses by what both sides know.
func (m *machine) syncWay(ctx context.Context, c Copy, o ProtectOptions, peer string, reply PrepareReply) (syncWay, error) {
	rec, spec := m.info()
	_, covered, err := c.BitmapCovers(ctx)
	if err != nil {
		return syncWay{}, err
	}
	auto := chooseSync(rec, spec, covered, peer, reply)
	switch o.Mode {
	case "", auto.mode:
		return auto, nil
	case blockrepl.Bitmap:
		return syncWay{}, fmt.Errorf("a bitmap resync would be wrong: %s", auto.why)
	}
	return syncWay{mode: o.Mode, why: "as asked"}, nil
}

// chooseSync is the table of syncWay: the first line that holds counts.
func chooseSync(rec state.VM, spec *Spec, covered bool, peer string, reply PrepareReply) syncWay {
	r := rec.Resync
	why := ""
	switch {
	case reply.New:
		return syncWay{mode: blockrepl.Full, why: "the peer's disks are new"}
	case !covered:
		why = "this QEMU has no record of what it wrote since the disks were equal"
	case rec.Base != nil && rec.Base.Peer == peer && reply.SyncedAt != 0 && reply.SyncedAt == rec.Base.Generation:
		return syncWay{mode: blockrepl.Bitmap, why: "everything written since the disks were equal is on record"}
	case r != nil && r.Peer == peer && r.ID != "" && reply.Resync == r.ID && r.Mode == string(blockrepl.Bitmap):
		return syncWay{mode: blockrepl.Bitmap, why: "the last resync was interrupted, and what it did not make durable is on record"}
	case r != nil && r.Peer == peer && r.ID != "" && reply.Resync == r.ID && r.Mode == string(blockrepl.Checksum) && len(r.Compared) > 0:
		var done, all int64
		for _, d := range spec.mirrored() {
			done, all = done+min(r.Compared[d.Name], int64(d.Size)), all+int64(d.Size)
		}
		return syncWay{mode: blockrepl.Checksum, from: maps.Clone(r.Compared), why: fmt.Sprintf("goes on at %d%% of the comparison that was interrupted", done*100/max(all, 1))}
	case rec.Base == nil || rec.Base.Peer != peer:
		why = "the record of writes does not begin where this peer's disks were equal"
	case reply.SyncedAt == 0:
		why = "the peer's disks were written by a copy of its own, or a resync of them was not finished"
	default:
		why = fmt.Sprintf("the peer's disks were equal at generation %d, the record of writes begins at %d", reply.SyncedAt, rec.Base.Generation)
	}
	return syncWay{mode: blockrepl.Checksum, why: why}
}

// syncDisks makes the disks equal. Before anything is sent it is on record which resync does, and that the bitmaps count for no other.
func (m *machine) syncDisks(ctx context.Context, c Copy, w syncWay, to string, peer Peer, token string, at Endpoint) error {
	_, spec := m.info()
	m.log.Info("resync", "mode", w.mode, "why", w.why)
	m.emit(Event{Kind: "resync", State: m.State(), Text: joinText(string(w.mode), w.why), Fields: map[string]any{"mode": w.mode}})
	if err := m.updateNow(ctx, func(v *state.VM) {
		v.Base = nil
		if v.Resync == nil {
			v.Resync = &state.Resync{}
		}
		v.Resync.ID, v.Resync.Mode, v.Resync.Compared = token, string(w.mode), maps.Clone(w.from)
		v.Resync.Peer = to
	}); err != nil {
		return err
	}
	speed, paused := m.tuning(spec)
	return c.SyncDisks(ctx, SyncRequest{
		To: at, Mode: w.mode, Speed: speed, Paused: paused, From: w.from, Progress: m.follow(w.mode),
		Sums: func(ctx context.Context, p blockrepl.Part) ([]byte, error) {
			return askSums(ctx, peer, SumsRequest{VM: m.name, From: m.n.cfg.Name, Resync: token}, p)
		},
		Save: func(disk string, compared int64) {
			m.update(func(v *state.VM) {
				if v.Resync == nil || v.Resync.ID != token {
					return
				}
				if v.Resync.Compared == nil {
					v.Resync.Compared = map[string]int64{}
				}
				v.Resync.Compared[disk] = compared
			})
		},
	})
}

// askSums lets the peer hash a part of its half.
func askSums(ctx context.Context, peer Peer, r SumsRequest, p blockrepl.Part) ([]byte, error) {
	r.Disk, r.Offset, r.Length, r.Key = p.Disk, p.Offset, p.Length, p.Key
	out, err := peer.Sums(ctx, r)
	if err == nil && !out.Keyed {
		err = fmt.Errorf("%w: the peer hashes its disks in another way: upgrade it", ErrPeerProtocol)
	}
	return out.Sums, err
}

// leastRated is how many seconds something must have gone on before its rate says anything.
const leastRated = 0.05

// follow turns blockrepl's progress of single disks into the VM's.
func (m *machine) follow(mode blockrepl.Mode) func(blockrepl.Progress) {
	last := map[string]blockrepl.Progress{}
	begun, phase := time.Now(), blockrepl.Phase("")
	return func(p blockrepl.Progress) {
		if p.Phase != phase {
			begun, phase = time.Now(), p.Phase
		}
		last[p.Disk] = p
		out := Progress{What: "copying the disks", Mode: mode, Disk: p.Disk}
		if p.Phase == blockrepl.Comparing {
			out.What = "comparing the disks"
		}
		for _, d := range last {
			if d.Phase != p.Phase {
				continue
			}
			out.Done += d.Done
			out.Total += d.Total
			if !d.Ready {
				out.Rate += int64(d.Rate)
			}
		}
		if took := time.Since(begun).Seconds(); out.Rate == 0 && took >= leastRated {
			out.Rate = int64(float64(out.Done) / took)
		}
		if left := out.Total - out.Done; out.Rate > 0 && left > 0 {
			out.ETA = time.Duration(float64(left) / float64(out.Rate) * float64(time.Second))
		}
		m.setProgress(out)
	}
}

// ResyncTune changes a resync that runs. Fields that are nil stay as they are.
type ResyncTune struct {
	Limit *int64 `json:"limit,omitempty"` // bytes a second for each disk; 0 is none
	Pause *bool  `json:"pause,omitempty"`
}

// resyncTuning is what a person has asked for. It counts until the VM is protected.
type resyncTuning struct {
	limit  *int64
	paused bool
	share  int64 // of what all resyncs of the node may send, for each disk; 0 is no limit
}

// CheckTuneResync tells why TuneResync would be refused now, and changes nothing.
func (n *Node) CheckTuneResync(vm string, t ResyncTune) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	if s := m.State(); s != Syncing {
		return &UnexpectedEventError{VM: vm, State: s, Event: "tune-resync"}
	}
	if t.Limit != nil && *t.Limit < 0 {
		return fmt.Errorf("%d bytes a second is no limit for a resync", *t.Limit)
	}
	return nil
}

// TuneResync changes the limit of the resync of a VM that is under way here, or makes it pause or go on. While it is paused the guest runs on,
// unprotected.
func (n *Node) TuneResync(ctx context.Context, vm string, t ResyncTune) error {
	if err := n.CheckTuneResync(vm, t); err != nil {
		return err
	}
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if t.Limit != nil {
		m.tune.limit = t.Limit
	}
	if t.Pause != nil {
		m.tune.paused = *t.Pause
	}
	c, spec := m.copy, m.spec
	m.mu.Unlock()
	speed, paused := m.tuning(spec)
	m.mu.Lock()
	if m.prog != nil {
		p := *m.prog
		p.Limit, p.Paused = speed, paused
		m.prog = &p
	}
	m.wake()
	m.mu.Unlock()
	text := fmt.Sprintf("limit %s/s", Size(speed))
	switch {
	case paused:
		text = "paused"
	case speed == 0:
		text = "goes on without a limit"
	}
	m.emit(Event{Kind: "resync", State: m.State(), Text: text, Fields: map[string]any{"limit": speed, "paused": paused}})
	if c == nil {
		return nil
	}
	return c.TuneSync(ctx, speed, paused)
}

// tuning is the limit and the pause that count now.
func (m *machine) tuning(spec *Spec) (speed int64, paused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tune.speed(spec), m.tune.paused
}

// speed is the limit for each disk: what a person has asked for, otherwise the smaller one of the VM's own and its share of the node's.
func (t *resyncTuning) speed(spec *Spec) int64 {
	speed := int64(spec.Protection.SyncSpeed)
	switch {
	case t.limit != nil:
		return *t.limit
	case speed == 0 || t.share > 0 && t.share < speed:
		return t.share
	}
	return speed
}
