// Package colotest gives tests nodes without QEMU: a launcher whose copies do at once, in memory, what a QEMU would, and whose pairs notice each
// other's end as COLO does.
//
// Everything is safe for concurrent use. Copies end with their World's nodes; there are no goroutines.
package colotest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

// World is what copies on different nodes meet in.
type World struct {
	mu       sync.Mutex
	standbys map[string]*Copy
}

// NewWorld makes an empty one.
func NewWorld() *World { return &World{standbys: map[string]*Copy{}} }

// Launcher launches copies on one node.
type Launcher struct {
	World *World

	mu sync.Mutex
	// Refuse, if set, is what Check returns.
	refuse   error
	refuseVM string // only this one's, if set
	// mute, if set, is what Attach returns: the copies run, and don't answer.
	mute error
	// hold, if set, is waited for by SyncDisks after it has reported half of its progress.
	hold   chan struct{}
	copies map[string]*Copy
}

// NewLauncher makes the launcher of one node of w.
func NewLauncher(w *World) *Launcher { return &Launcher{World: w, copies: map[string]*Copy{}} }

// Refuse makes Check fail from now on; nil makes it succeed again.
func (l *Launcher) Refuse(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = err
}

// RefuseVM makes Check of one VM fail from now on; no name makes it succeed again.
func (l *Launcher) RefuseVM(vm string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse, l.refuseVM = err, vm
	if vm == "" {
		l.refuse = nil
	}
}

// Mute makes the copies not answer a daemon that finds them again; nil makes them answer.
func (l *Launcher) Mute(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mute = err
}

// HoldSync makes the copying of disks stop half-way until the returned function is called.
func (l *Launcher) HoldSync() (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hold := make(chan struct{})
	l.hold = hold
	return sync.OnceFunc(func() { close(hold) })
}

// Copy returns the copy of a VM that runs on this node, or nil.
func (l *Launcher) Copy(vm string) *Copy {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.copies[vm]
}

// Check implements [colo.Launcher].
func (l *Launcher) Check(_ context.Context, s *colo.Spec) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuseVM != "" && l.refuseVM != s.Name {
		return nil
	}
	return l.refuse
}

// CreateImages implements [colo.Launcher].
func (l *Launcher) CreateImages(context.Context, *colo.Spec) ([]string, error) { return nil, nil }

// Grow implements [colo.Launcher].
func (l *Launcher) Grow(context.Context, *colo.Spec) error { return nil }

// Launch implements [colo.Launcher].
func (l *Launcher) Launch(_ context.Context, r colo.LaunchRequest) (colo.Copy, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &Copy{l: l, vm: r.Spec.Name, events: make(chan colo.CopyEvent, 64)}
	l.copies[r.Spec.Name] = c
	return c, nil
}

// Attach implements [colo.Launcher]: a copy is found by the node that comes after the one that has launched it, while it is alone.
func (l *Launcher) Attach(_ context.Context, s *colo.Spec, _ state.Instance) (colo.Copy, colo.View, error) {
	l.mu.Lock()
	c, mute := l.copies[s.Name], l.mute
	l.mu.Unlock()
	switch {
	case mute != nil:
		return nil, colo.View{}, mute
	case c == nil:
		return nil, colo.View{}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c, colo.View{Mode: "none", Cut: !c.joined}, nil
}

// End implements [colo.Launcher].
func (l *Launcher) End(context.Context, *colo.Spec, state.Instance) error { return nil }

// Clear implements [colo.Launcher].
func (l *Launcher) Clear(context.Context, *colo.Spec) error { return nil }

// Remove implements [colo.Launcher].
func (l *Launcher) Remove(context.Context, *colo.Spec, bool) error { return nil }

// Copy is one QEMU that isn't there.
type Copy struct {
	l      *Launcher
	vm     string
	events chan colo.CopyEvent

	mu     sync.Mutex
	dead   bool
	other  *Copy // in COLO with it
	joined bool
	begun  time.Time // of COLO
	speed  int64
	paused bool
	gone   []string      // disks whose half here it has let go of
	stuck  chan struct{} // closed when a kill works again; nil when it does
	tried  chan struct{} // closed when one was tried that did not
}

var errDead = errors.New("this copy has ended")

func (c *Copy) emit(kind colo.EventKind, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dead {
		c.events <- colo.CopyEvent{Kind: kind, Text: text, Time: time.Now()}
	}
}

// Crash ends the copy as a crash of QEMU would.
func (c *Copy) Crash() { c.end("crashed") }

func (c *Copy) end(how string) {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return
	}
	c.dead = true
	c.events <- colo.CopyEvent{Kind: colo.Exited, Text: how, Time: time.Now()}
	close(c.events)
	other := c.other
	c.other = nil
	c.mu.Unlock()
	c.l.mu.Lock()
	if c.l.copies[c.vm] == c {
		delete(c.l.copies, c.vm)
	}
	c.l.mu.Unlock()
	if other != nil {
		other.leave()
		other.emit(colo.ChannelLost, "the other side has gone")
	}
}

// leave ends COLO on this side.
func (c *Copy) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.other, c.begun = nil, time.Time{}
}

// LoseChannel is the end of COLO on this side, as when the other one has gone.
func (c *Copy) LoseChannel() {
	c.leave()
	c.emit(colo.ChannelLost, "the other side has gone")
}

// Stick makes kills wait until release is called, as of a process that hangs in the kernel. tried is closed by the first one.
func (c *Copy) Stick() (tried <-chan struct{}, release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stuck := make(chan struct{})
	c.stuck, c.tried = stuck, make(chan struct{})
	return c.tried, sync.OnceFunc(func() { close(stuck) })
}

// Hang tells that the copy does not answer any more.
func (c *Copy) Hang() { c.emit(colo.Hung, "it does not answer") }

// Kill ends it, see [Copy.Stick].
func (c *Copy) Kill(ctx context.Context) error {
	c.mu.Lock()
	stuck := c.stuck
	if c.tried != nil {
		close(c.tried)
		c.tried = nil
	}
	c.mu.Unlock()
	if stuck != nil {
		select {
		case <-stuck:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.end("killed")
	return nil
}

// Joined says whether the copy is on the LAN.
func (c *Copy) Joined() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.joined && !c.dead
}

// The rest implements [colo.Copy].

func (c *Copy) Events() <-chan colo.CopyEvent { return c.events }
func (c *Copy) PID() int                      { return os.Getpid() }
func (c *Copy) Instance() state.Instance      { return state.Instance{PID: os.Getpid(), Dir: "/nowhere"} }
func (c *Copy) Disconnect()                   {}

// Stats counts ten checkpoints a second since COLO began.
func (c *Copy) Stats() colo.CheckpointStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begun.IsZero() {
		return colo.CheckpointStats{}
	}
	n := uint64(time.Since(c.begun)/(100*time.Millisecond)) + 1
	return colo.CheckpointStats{Count: n, PauseP50: time.Millisecond, PauseP99: 2 * time.Millisecond, Last: time.Now()}
}

func (c *Copy) Alive(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return errDead
	}
	return nil
}

func (c *Copy) setJoined(v bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joined = v
	return nil
}

func (c *Copy) Join(context.Context) error                      { return c.setJoined(true) }
func (c *Copy) Cut(context.Context) error                       { return c.setJoined(false) }
func (c *Copy) Cont(context.Context) error                      { return nil }
func (c *Copy) Pause(context.Context) error                     { return nil }
func (c *Copy) Powerdown(context.Context) error                 { return nil }
func (c *Copy) Commit(context.Context) error                    { return nil }
func (c *Copy) Announce(context.Context) error                  { return nil }
func (c *Copy) Checkpoint(context.Context) error                { return nil }
func (c *Copy) Connect(context.Context, colo.Endpoint) error    { return nil }
func (c *Copy) CopyMemory(context.Context, colo.Endpoint) error { return nil }

// key tells standbys apart as QEMU does: who has another one's key does not get in.
func key(e colo.Endpoint) string { return fmt.Sprintf("%s:%d %s", e.Host, e.Migration, []byte(e.Key)) }

func (c *Copy) Listen(_ context.Context, at colo.Endpoint) error {
	w := c.l.World
	w.mu.Lock()
	defer w.mu.Unlock()
	w.standbys[key(at)] = c
	return nil
}

// Local has what Sums has.
func (c *Copy) Local(context.Context) (blockrepl.Sums, func(context.Context) error, error) {
	return c.Sums, func(context.Context) error { return nil }, nil
}

// Mark succeeds.
func (c *Copy) Mark(context.Context, string, []blockrepl.Range) error { return nil }

// DropDisk lets go of a half in COLO, as a QEMU does with one that fails.
func (c *Copy) DropDisk(_ context.Context, disk string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.other == nil {
		return blockrepl.ErrOnlyHalf
	}
	c.gone = append(c.gone, disk)
	return nil
}

// Sums has nothing to hash: every disk is all zeroes.
func (c *Copy) Sums(_ context.Context, p blockrepl.Part) ([]byte, error) {
	return make([]byte, (p.Length+blockrepl.HashBlock-1)/blockrepl.HashBlock*blockrepl.SumSize), nil
}

// Backup copies nothing.
func (c *Copy) Backup(context.Context, blockrepl.BackupOptions) error { return nil }

// TuneSync remembers what it was told, see [Copy.Tuned].
func (c *Copy) TuneSync(_ context.Context, speed int64, paused bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.speed, c.paused = speed, paused
	return nil
}

// Tuned returns what the last TuneSync was told.
func (c *Copy) Tuned() (speed int64, paused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.speed, c.paused
}

func (c *Copy) Promote(context.Context) error { c.leave(); return nil }

func (c *Copy) BitmapCovers(context.Context) (int64, bool, error) { return 0, false, nil }

func (c *Copy) SyncDisks(ctx context.Context, r colo.SyncRequest) error {
	w := c.l.World
	w.mu.Lock()
	c.mu.Lock()
	c.other = w.standbys[key(r.To)]
	c.mu.Unlock()
	w.mu.Unlock()
	const total = 100 << 20
	r.Progress(blockrepl.Progress{Disk: "vda", Done: total / 2, Total: total, Rate: 10 << 20})
	c.l.mu.Lock()
	hold := c.l.hold
	c.l.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.Progress(blockrepl.Progress{Disk: "vda", Done: total, Total: total})
	return nil
}

func (c *Copy) SwitchDisks(context.Context) (colo.SyncResult, error) {
	return colo.SyncResult{Mode: blockrepl.Full, Copied: 100 << 20}, nil
}

func (c *Copy) StartColo(context.Context) error {
	c.mu.Lock()
	other := c.other
	c.mu.Unlock()
	if other == nil {
		return errors.New("nobody listens there")
	}
	now := time.Now()
	other.mu.Lock()
	other.other, other.begun = c, now
	other.mu.Unlock()
	other.emit(colo.ColoStarted, "in COLO")
	c.mu.Lock()
	c.begun = now
	c.mu.Unlock()
	return nil
}

func (c *Copy) ProveColo(context.Context) error { return nil }

func (c *Copy) Release(context.Context) error {
	c.mu.Lock()
	other, gone := c.other, c.gone
	c.mu.Unlock()
	if len(gone) > 0 {
		return &colo.HalfGoneError{Disks: gone}
	}
	c.leave()
	if other != nil {
		other.leave()
	}
	return nil
}
