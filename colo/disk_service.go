package colo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/state"
)

// This file is about halves of disks that are out of service, because they fail or because a person says so.
//
// A primary whose own half fails goes on through the peer's. From then on its half lacks what the guest writes, and the peer's has it: the half is
// behind. That is on record, and all that follows is derived from it:
//
//   - A copy that has let go of a half never goes on alone, whoever else is lost: Release refuses it before anything is let out, so nobody has seen
//     what the peer's half may lack.
//   - It hands its role over. Where that fails it ends; and when this node counts at the arbiter, alone or with the peer, it makes the peer the only one
//     that does: see cede.
//   - The half comes back only by a resync to it. A person may say that it is in service again as soon as the copy that let go of it has ended.

// ErrDiskOffline is returned for what needs a half of a disk that is out of service.
var ErrDiskOffline = errors.New("a half of a disk is out of service")

// HalfGoneError is returned by the Release of a copy that has gone on through the peer's halves of some disks.
type HalfGoneError struct{ Disks []string }

func (e *HalfGoneError) Error() string {
	return "what the guest wrote last is on the peer's half only, of " + strings.Join(e.Disks, ", ")
}

// offline names the disks whose half on this node is out of service.
func offline(rec state.VM) []string {
	var names []string
	for name, d := range rec.Disks {
		if d.Offline != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (m *machine) offlineError(rec state.VM) error {
	var why []string
	for _, name := range offline(rec) {
		why = append(why, name+" ("+rec.Disks[name].Offline+")")
	}
	return fmt.Errorf("%w on %s: %s; when it is well again: coloctl disk online %s %s %s", ErrDiskOffline, m.n.cfg.Name, strings.Join(why, ", "),
		m.name, offline(rec)[0], m.n.cfg.Name)
}

// behind says whether the peer's half of a disk has what this node's lacks, since a copy here has let go of it.
func behind(rec state.VM) bool {
	for _, d := range rec.Disks {
		if d.Behind {
			return true
		}
	}
	return false
}

// changeDisk changes the record of this node's half of a disk.
func changeDisk(disk string, change func(*state.Disk)) func(*state.VM) {
	return func(v *state.VM) {
		if v.Disks == nil {
			v.Disks = map[string]state.Disk{}
		}
		d := v.Disks[disk]
		change(&d)
		v.Disks[disk] = d
	}
}

// setOffline takes this node's half of a disk out of service; an empty why takes it back.
func setOffline(disk, why string) func(*state.VM) {
	return changeDisk(disk, func(d *state.Disk) { d.Offline = why })
}

// peerWhole says whether the peer's halves have had everything since this node's QEMU was last made to write to both. Only then may a half that is gone
// here make the peer's the better one: while a resync to the peer is under way, its halves are the worse ones whatever becomes of these.
func (m *machine) peerWhole() bool {
	rec, _ := m.info()
	return len(rec.Members) > 1 || rec.Offered != "" || m.doubled.Load()
}

// letGo is setOffline for a half that the running copy lets go of. What that copy has on record of its writes is not all of them from then on.
func letGo(disk, why string) func(*state.VM) {
	return both(changeDisk(disk, func(d *state.Disk) { d.Offline, d.InSync, d.Behind = why, false, true }), func(v *state.VM) { v.Base, v.Resync = nil, nil })
}

// noteDisk remembers and tells that a disk fails.
func (m *machine) noteDisk(msg message) {
	switch rec, _ := m.info(); {
	case msg.disk == "":
	case rec.Role == state.RoleSecondary: // it ends, and nothing was written that the primary lacks
		m.update(changeDisk(msg.disk, func(d *state.Disk) { d.Offline, d.InSync = msg.text, false }))
	case !m.peerWhole():
		m.log.Warn("a half of a disk is said to be gone, and the peer's is not whole: this node's still counts", "disk", msg.disk, "text", msg.text)
	default:
		m.update(letGo(msg.disk, cmp.Or(rec.Disks[msg.disk].Offline, msg.text))) // what it was first
	}
	m.emit(Event{Kind: "disk", State: m.State(), Text: msg.text, Fields: map[string]any{"disk": msg.disk}})
}

// release takes replication down. That the copy has let go of a half is on record before anything else is decided.
func (m *machine) release(ctx context.Context, c Copy) error {
	err := c.Release(ctx)
	var gone *HalfGoneError
	if errors.As(err, &gone) {
		for _, disk := range gone.Disks {
			if rec, _ := m.info(); !rec.Disks[disk].Behind {
				m.noteDisk(message{disk: disk, text: "a write to this node's half of disk " + disk + " failed while replication was taken down"})
			}
		}
	}
	return err
}

// cede hands the VM to the peer when no copy runs here any more, this node still counts, and its half is behind: what clients have seen last is on the
// peer's half only (see peerWhole). It repeats itself until the arbiter has answered. The peer's copy goes on if it lives; otherwise it is started there.
func (m *machine) cede(ctx context.Context) {
	if !m.mustCede() || !m.ceding.CompareAndSwap(false, true) {
		return
	}
	m.n.wg.Go(func() {
		defer m.ceding.Store(false)
		for m.mustCede() && !m.ceded(ctx) {
			select {
			case <-time.After(time.Second):
			case <-m.quit:
				return
			case <-ctx.Done():
				return
			}
		}
	})
}

func (m *machine) mustCede() bool {
	switch m.State() {
	case Stopped, Outdated, Failed:
	default:
		return false
	}
	rec, _ := m.info()
	return m.current() == nil && rec.Instance == nil && slices.Contains(rec.Members, m.n.cfg.Name) && behind(rec)
}

// ceded tries once.
func (m *machine) ceded(ctx context.Context) bool {
	p, info, err := m.partner()
	if err != nil {
		return false
	}
	done, err := m.ask(ctx)
	if err != nil {
		return false
	}
	if !m.mustCede() { // a plan has asked meanwhile
		done()
		return false
	}
	// The arbiter may count the peer alone from the moment it is asked, also when its answer is lost: this node must not believe that it is alone then, also after a loss of power.
	if rec, _ := m.info(); rec.Offered != info.Name {
		if err := m.updateNow(ctx, func(v *state.VM) { v.Offered = info.Name }); err != nil {
			done()
			return false
		}
	}
	got, err := m.advanceHeld(ctx, []string{info.Name})
	done()
	if err != nil {
		return errors.Is(err, errLost)
	}
	m.emit(Event{Kind: "disk", State: m.State(), Text: info.Name + " has the newest half of every disk: it alone counts from here on"})
	ctx, cancel := context.WithTimeout(ctx, cedeTimeout)
	defer cancel()
	if err := p.TakeOver(ctx, got); err != nil { // it learns it from the arbiter
		m.log.Warn("the peer was not told that it alone counts", "peer", info.Name, "err", err)
	}
	return true
}

// cedeTimeout bounds the call that tells the peer that it alone counts.
const cedeTimeout = 5 * time.Second

// SetDisk takes this node's half of a disk out of service, or back into it. The guest goes on: a primary's through the peer's half, and then on the
// peer by a switchover, unless the VM's owner wants it to stay; a secondary ends, and the primary goes on alone. What is taken back is made
// equal when the VM is protected next.
func (n *Node) SetDisk(ctx context.Context, vm, disk string, online bool, reason string) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	s := m.State()
	rec, _ := m.info()
	if err := m.diskRefused(s, disk, online); err != nil {
		return err
	}
	if online {
		if rec.Disks[disk].Offline == "" {
			return nil
		}
		if err := m.updateNow(ctx, setOffline(disk, "")); err != nil {
			return err
		}
		m.emit(Event{Kind: "disk", State: m.State(), Text: "this node's half of disk " + disk + " is back in service", Fields: map[string]any{"disk": disk}})
		m.reset()
		return nil
	}
	if reason == "" {
		reason = "taken out of service by a person"
	}
	switch s {
	case Protected:
		return m.dropDisk(ctx, disk, reason)
	case Secondary:
		// It has all that was written until it ends, and the primary keeps record of what comes then.
		out := outage{disk: disk, reason: reason, peer: Protected, note: setOffline(disk, reason), back: func(d *state.Disk) { d.Offline = rec.Disks[disk].Offline }}
		if err := m.leaveToPeer(ctx, out); err != nil {
			return err
		}
		m.post(message{kind: DiskFailed, text: "disk " + disk + ": " + reason, copy: m.current()})
		return nil
	default:
		return m.updateNow(ctx, setOffline(disk, reason))
	}
}

// CheckDisk tells why SetDisk would be refused now, and changes nothing.
func (n *Node) CheckDisk(vm, disk string, online bool) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	return m.diskRefused(m.State(), disk, online)
}

// diskRefused says why this node's half of a disk can't be taken out of service, or back, in a state.
func (m *machine) diskRefused(s State, disk string, online bool) error {
	rec, spec := m.info()
	if _, err := spec.mirroredDisk(disk); err != nil {
		return err
	}
	node := m.n.cfg.Name
	if online {
		if rec.Disks[disk].Offline != "" && (m.current() != nil || rec.Instance != nil) { // what it writes goes to the other half only, until its end
			return fmt.Errorf("the copy that runs on %s has let go of it: switch %s over first: %w", node, m.name, &UnexpectedEventError{VM: m.name, State: s, Event: "disk-online"})
		}
		return nil
	}
	switch s {
	case Protected, Secondary:
		return nil
	case Stopped, Outdated, Failed:
		if aloneIn(rec, node) && len(incomplete(rec, spec)) == 0 {
			return fmt.Errorf("%s holds the only current half of disk %s: %w", node, disk, &UnexpectedEventError{VM: m.name, State: s, Event: "disk-offline"})
		}
		return nil
	default:
		return fmt.Errorf("%s holds the only current half of disk %s, or is changing that: %w", node, disk, &UnexpectedEventError{VM: m.name, State: s, Event: "disk-offline"})
	}
}

// dropDisk lets a primary go on through the peer's half of a disk. It is on record first: a crash in between must not leave a half that counts and
// lacks something.
func (m *machine) dropDisk(ctx context.Context, disk, reason string) error {
	c := m.current()
	if c == nil {
		return errCopyDead
	}
	rec, _ := m.info()
	was := rec.Disks[disk]
	out := outage{disk: disk, reason: reason, peer: Secondary, note: letGo(disk, reason), back: func(d *state.Disk) { *d = was }}
	if err := m.leaveToPeer(ctx, out); err != nil {
		return err
	}
	if err := c.DropDisk(ctx, disk); errors.Is(err, blockrepl.ErrOnlyHalf) {
		m.update(changeDisk(disk, func(d *state.Disk) { *d = was }))
		return err
	}
	m.post(message{kind: DiskFailed, disk: disk, text: reason, copy: c}) // also when nobody knows whether it was dropped
	return nil
}

// outage is a half of this node's that a person takes out of service.
type outage struct {
	disk, reason string
	peer         State             // where the peer's copy has to be
	note         func(*state.VM)   // puts it down
	back         func(*state.Disk) // takes that back
}

// leaveToPeer puts an outage down, unless the peer's copy can't go on. Both nodes put down what they are about to do before they ask once more, so of two who
// ask at the same time one hears of the other.
func (m *machine) leaveToPeer(ctx context.Context, o outage) error {
	if err := m.otherHalf(ctx, o.disk, o.peer); err != nil {
		return err
	}
	if err := m.updateNow(ctx, o.note); err != nil {
		return err
	}
	err := m.otherHalf(ctx, o.disk, o.peer)
	if err != nil {
		m.update(changeDisk(o.disk, func(d *state.Disk) {
			if d.Offline == o.reason { // it has not failed meanwhile
				o.back(d)
			}
		}))
	}
	return err
}

// otherHalf makes sure that the peer's copy goes on when this node's half is taken out of service: that it is where it should be, and all of its halves
// are in service.
func (m *machine) otherHalf(ctx context.Context, disk string, want State) error {
	p, info, err := m.partner()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cedeTimeout)
	defer cancel()
	there, err := p.Inquire(ctx, m.name)
	refused := &UnexpectedEventError{VM: m.name, State: m.State(), Event: "disk-offline"}
	switch {
	case err != nil:
		return fmt.Errorf("%s can't say whether its half of disk %s is well: %w", info.Name, disk, err)
	case there.State != want || !there.Running:
		return fmt.Errorf("the copy on %s, which would have to go on, is %s: %w", info.Name, there.State, refused)
	case there.Lacks:
		return fmt.Errorf("a half of a disk on %s is out of service: %w: %w", info.Name, ErrDiskOffline, refused)
	}
	return nil
}
