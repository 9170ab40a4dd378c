package colo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/netcompare"
	"github.com/coloctl/coloctl/netcompare/comparer"
	"github.com/coloctl/coloctl/qmp"
	"github.com/coloctl/coloctl/state"
)

// qemuCopy is a Copy that is a QEMU process on this host.
type qemuCopy struct {
	l     *qemuLauncher
	spec  *Spec
	disks []blockrepl.Disk
	nics  []netcompare.NIC
	proc  *process
	dir   string
	log   *slog.Logger

	main       *qmp.Client // commands
	rescue     *qmp.Client // out of band, and the question whether QEMU lives: never anything that can wait for a disk
	events     chan CopyEvent
	quit       chan struct{} // closed by Disconnect
	killed     chan struct{} // closed by Kill
	kill1      sync.Once
	once       sync.Once
	cp         checkpoints
	inColo     atomic.Bool
	entered    time.Time         // COLO; of follow
	torn       atomic.Bool       // a write to the peer's half of a disk has failed since then
	ending     atomic.Bool       // replication is being ended by us: what is lost now is no news
	off        atomic.Bool       // the guest has switched itself off, see qemu_off.go
	ends       *qmp.Subscription // of rescue, see qemu_ends.go
	dying      atomic.Bool       // somebody else has told QEMU to end, and it is about to
	second     atomic.Bool       // a standby or secondary that was not promoted
	halves     halves            // that it has let go of
	heed       chan func()       // run by follow when it has read what QEMU has said so far
	wg         sync.WaitGroup
	leases     netcompare.Leases // of its gate
	protection atomic.Pointer[ProtectionSpec]
	keeper     atomic.Pointer[comparer.Keeper] // of the comparer of streams, while there is one

	mirror   atomic.Pointer[blockrepl.Mirror] // of the attach under way, or of the one that led to COLO
	exported atomic.Pointer[Endpoint]         // where a standby listens

	overlay atomic.Pointer[OverlayStatus] // of a secondary, as it was seen last

	encrypted atomic.Pointer[bool] // what QEMU says of this COLO; nil before it was asked

	bitmaps sync.Mutex  // held while bitmaps are moved or taken down
	proven  atomic.Bool // this daemon has proven COLO, and no write to the peer's disk has failed since
	mode    blockrepl.Mode
}

// connect opens both QMP sockets and starts to follow QEMU.
func (c *qemuCopy) connect(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	if c.main, err = dialQMP(ctx, c.proc, filepath.Join(c.dir, qmpSocket), c.spec.Name); err != nil {
		return err
	}
	if c.rescue, err = dialQMP(ctx, c.proc, filepath.Join(c.dir, rescueSocket), c.spec.Name+" rescue"); err != nil {
		return errors.Join(err, c.main.Close())
	}
	c.ends = c.rescue.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("SHUTDOWN")})
	sub := c.main.Subscribe(qmp.SubscribeOptions{Buffer: 1024})
	c.wg.Go(func() { c.follow(sub) })
	c.wg.Go(c.watch)
	c.wg.Go(c.adaptDelay)
	c.wg.Go(c.boundOverlays)
	c.wg.Go(c.keepBitmapsShort)
	go c.reap()
	return nil
}

// reap closes everything after QEMU's end, which it tells last, or after Disconnect.
func (c *qemuCopy) reap() {
	var ended bool
	select {
	case <-c.proc.done:
		ended = true
		c.drain()
	case <-c.quit:
	}
	_ = c.main.Close()
	_ = c.rescue.Close()
	_ = c.leases.Close()
	if ended {
		if err := c.stopComparer(context.Background()); err != nil {
			c.log.Warn("end the comparer", "err", err)
		}
	} else if k := c.keeper.Load(); k != nil {
		k.Leave()
	}
	c.wg.Wait()
	if ended && c.off.Load() && c.l.endsWithGuest() {
		c.log.Info("QEMU was ended because its guest is off")
		select {
		case <-c.killed:
		case <-c.quit:
			ended = false
		}
	}
	if ended {
		text := "QEMU ended"
		if c.proc.end != nil {
			text += ": " + c.proc.end.Error()
		}
		if words := c.proc.lastWords(); words != "" {
			text += " (" + words + ")"
		}
		c.tell(Exited, text)
	}
	close(c.events)
}

// Disconnect returns when both sockets are free for the next one who connects.
func (c *qemuCopy) Disconnect() {
	c.once.Do(func() { close(c.quit) })
	_ = c.main.Close()
	_ = c.rescue.Close()
}

func (c *qemuCopy) Instance() state.Instance {
	i := state.Instance{PID: c.proc.pid, Dir: c.dir, QMP: filepath.Join(c.dir, qmpSocket), Rescue: filepath.Join(c.dir, rescueSocket)}
	// Both can only fail for a process that has ended, which nobody will look for.
	i.StartTicks, _, _ = procStat(c.proc.pid)
	i.BootID, _ = bootID()
	return i
}

// view asks what QEMU is doing.
func (c *qemuCopy) view(ctx context.Context) (View, error) {
	ctx, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	colo, err := c.main.QueryColoStatus(ctx)
	if err != nil {
		return View{}, err
	}
	st, err := c.main.QueryStatus(ctx)
	return View{Mode: colo.Mode, Incoming: st.Status == "inmigrate" && colo.Mode == "none", Off: st.Status == "shutdown"}, err
}

// bootID tells this run of the kernel from others.
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}

// tell hands an event to the engine. The channel is wide enough for all that a QEMU says while the engine is busy; Exited is never lost.
func (c *qemuCopy) tell(kind EventKind, text string) {
	c.send(CopyEvent{Kind: kind, Text: text, Time: time.Now()})
}

func (c *qemuCopy) send(e CopyEvent) {
	if e.Kind == Exited {
		for len(c.events) == cap(c.events) { // nobody reads any more, or not yet: the newest counts
			select {
			case <-c.events:
			default:
			}
		}
	}
	select {
	case c.events <- e:
	default:
		c.log.Error("event of QEMU was lost", "event", e.Kind, "text", e.Text)
	}
}

func (c *qemuCopy) Events() <-chan CopyEvent { return c.events }
func (c *qemuCopy) PID() int                 { return c.proc.pid }
func (c *qemuCopy) Stats() CheckpointStats   { return c.cp.stats() }

// Alive asks out of band, so that a main loop that waits for the peer does not count as dead.
func (c *qemuCopy) Alive(ctx context.Context) error {
	switch {
	case c.off.Load() && c.second.Load() && c.l.endsWithGuest():
		return errOff // it ends in a moment, if it hasn't yet: promoted, it would take its overlays along
	case c.goneOff():
		return nil
	}
	if _, err := c.rescue.QueryYank(ctx); err != nil {
		return err
	}
	c.readEnds()
	if c.dying.Load() && !c.off.Load() {
		return errDying
	}
	return nil
}

// heldBack is for how long QEMU may hold an event back, and more.
const heldBack = 2 * time.Second

// Torn is a [Copy] of which the peer's half may lack a write.
type Torn interface {
	Torn() bool
}

func (c *qemuCopy) Torn() bool { return c.torn.Load() }

func (c *qemuCopy) lost(text string) {
	if !c.ending.Load() && !c.dying.Load() {
		c.tell(ChannelLost, text)
	}
}

// awakeness tells for how long a loop that should run often has waited for something, without the time in which it was stalled itself: what it
// waits for may have come meanwhile, unread.
type awakeness struct {
	every time.Duration // a longer pause is a stall
	last  time.Time     // when the loop ran last
	woke  time.Time     // the end of its last stall
}

func (a *awakeness) note(now time.Time) {
	if now.Sub(a.last) > a.every {
		a.woke = now
	}
	a.last = now
}

// since is how long ago a moment is at the time that was noted last, at most back to the end of the last stall.
func (a *awakeness) since(t time.Time) time.Duration {
	if t.Before(a.woke) {
		t = a.woke
	}
	return a.last.Sub(t)
}

// ticks waits for the next tick; false when the connection to QEMU has ended.
func (c *qemuCopy) ticks(t *beat) bool {
	select {
	case <-c.proc.done:
		return false
	case <-c.quit:
		return false
	case <-t.C:
		t.Next()
		return true
	}
}

// watch asks QEMU now and then whether it lives. A main loop that stands still while QEMU is in COLO means that the peer does, because
// QEMU waits for it; a QEMU that does not even answer out of band is itself the one that stands still.
func (c *qemuCopy) watch() {
	hang := c.l.cfg.HangTimeout
	tick := newBeat(c.l.cfg.Beat, min(hang/8, 2*c.l.cfg.HeartbeatInterval, 200*time.Millisecond))
	defer tick.Stop()
	var (
		asked   time.Time // the open question
		answer  = make(chan struct{}, 1)
		frozen  int
		hung    bool
		stuckAt time.Time // checkpoint that was reported
		awake   = awakeness{every: hang / 2, last: time.Now()}
	)
	for {
		select {
		case <-c.proc.done:
			return
		case <-c.quit:
			return
		case <-answer:
			asked, hung = time.Time{}, false
			continue // the next question comes with the next tick
		case <-tick.C:
			tick.Next()
		}
		if c.proc.frozen() {
			frozen++
		} else {
			frozen = 0
		}
		awake.note(time.Now())
		late := !asked.IsZero() && awake.since(asked) > hang
		if (late || frozen >= 2) && !hung {
			hung = true
			c.tell(Hung, map[bool]string{true: "QEMU was stopped", false: fmt.Sprintf("QEMU has not answered for %s", hang)}[frozen >= 2])
		}
		if begin := c.cp.running(); !begin.IsZero() && !begin.Equal(stuckAt) && awake.since(begin) > hang && frozen == 0 && !late {
			stuckAt = begin
			c.lost(fmt.Sprintf("a checkpoint has not ended for %s", hang))
		}
		if asked.IsZero() {
			asked = time.Now()
			c.wg.Go(func() {
				// Without a deadline: the end of QEMU ends it, and a late answer is news as well.
				if _, err := c.rescue.QueryYank(context.Background()); err == nil {
					answer <- struct{}{}
				}
			})
		}
	}
}

func (c *qemuCopy) Join(ctx context.Context) error {
	return c.eachNIC(func(n netcompare.NIC) error { return c.l.host.Join(ctx, n) })
}

func (c *qemuCopy) Cut(ctx context.Context) error {
	return c.eachNIC(func(n netcompare.NIC) error { return c.l.host.Cut(ctx, n) })
}

// eachNIC goes on past errors: one NIC more that is cut is better than one less.
func (c *qemuCopy) eachNIC(do func(netcompare.NIC) error) error {
	var errs []error
	for _, n := range c.nics {
		errs = append(errs, do(n))
	}
	return errors.Join(errs...)
}

func (c *qemuCopy) Cont(ctx context.Context) error {
	c.off.Store(false)
	return c.main.Cont(ctx)
}

func (c *qemuCopy) Powerdown(ctx context.Context) error {
	return c.unlessOff(ctx, c.powerdown(ctx))
}

func (c *qemuCopy) powerdown(ctx context.Context) error {
	sub := c.main.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("SHUTDOWN")})
	defer sub.Close()
	st, err := c.main.QueryStatus(ctx)
	if err != nil || st.Status == "shutdown" {
		return err
	}
	if err := c.main.SystemPowerdown(ctx); err != nil {
		return err
	}
	_, err = sub.Next(ctx)
	return err
}

func (c *qemuCopy) Kill(ctx context.Context) error {
	c.ending.Store(true)
	if err := c.proc.kill(ctx); err != nil {
		return err
	}
	c.kill1.Do(func() { close(c.killed) })
	c.l.forget(context.WithoutCancel(ctx), c.spec.Name)
	c.dropLinks(context.WithoutCancel(ctx))
	return nil
}
