package comparer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/netcompare/compare"
)

const (
	dialTimeout = 5 * time.Second
	// askAgain is when a checkpoint that a new process needs is asked for again.
	askAgain = 500 * time.Millisecond
	// lookAtLease is how soon a daemon's word is noticed while something waits for it.
	lookAtLease = 10 * time.Millisecond
	// heldBack is for how long QEMU may hold an event back, and more.
	heldBack = 2 * time.Second
	// readsATurn bounds how often one socket is read before the others get their turn.
	readsATurn = 8
	// priority is the process's nice value where that is permitted.
	priority = -10
)

// loop is the one goroutine that sees packets and events.
type loop struct {
	cfg  Config
	log  *slog.Logger
	pool *compare.Pool
	eng  *compare.Engine
	mon  *monitor
	pri  []*reader
	sec  []*reader
	out  []*writer
	iov  [][]byte
	turn []compare.Frame // the primary's frames of this turn, that the engine has not been given yet
	ev   []message       // what QEMU has said since

	inColo   bool
	paused   bool      // somebody has stopped the guest: it is no checkpoint
	began    timestamp // COLO, by QEMU's clock
	failed   []string  // see Status.FailedWrites
	statusID string    // of the question after the last STOP
	running  bool      // the guest
	askedAt  time.Time // last request that no engine has made
	holdWhy  string

	control chan func()
	wake    int // eventfd
	stop    bool
	turns   uint64
	pauses  pauses
	stopAt  time.Time

	lease     *Lease
	stopped   int64  // when the guest stopped last, by the monotonic clock
	entered   int64  // COLO
	sureUntil int64  // see Lease
	unsure    bool   // something waits because of it
	lapses    uint64 // how often that was so
}

// Release is compare.Output.
func (l *loop) Release(nic uint8, frame []byte, c *compare.Chunk) { l.out[nic].put(frame, c) }

// Checkpoint is compare.Output.
func (l *loop) Checkpoint(why compare.Reason) {
	l.log.Debug("checkpoint", "why", why.String())
	l.force()
}

// force makes QEMU begin a checkpoint. While the guest stands still one is going on already, and between the beginning of
// COLO and its first RESUME the request would abort QEMU 11.1.
func (l *loop) force() {
	if !l.inColo || !l.running {
		return
	}
	if _, err := l.mon.send("migrate-set-parameters", map[string]any{"x-checkpoint-delay": l.cfg.Settings.Delay.Milliseconds()}); err != nil {
		l.log.Error("ask for a checkpoint", "err", err)
	}
}

// open connects to everything. On an error what is open is closed by close.
func (l *loop) open() (err error) {
	if l.mon, err = openMonitor(l.cfg.QMP, dialTimeout); err != nil {
		return err
	}
	note := func(m *message) { l.ev = append(l.ev, *m) }
	for i, n := range l.cfg.NICs {
		for _, s := range []struct {
			path string
			to   *[]*reader
		}{{n.Primary, &l.pri}, {n.Secondary, &l.sec}} {
			fd, err := dial(s.path)
			if err != nil {
				return fmt.Errorf("NIC %s: %w", n.Name, err)
			}
			*s.to = append(*s.to, &reader{fd: fd, nic: uint8(i), vnet: n.VNetHdr, pool: l.pool}) //nolint:gosec // checked
		}
		fd, err := dial(n.Out)
		if err != nil {
			return fmt.Errorf("NIC %s: %w", n.Name, err)
		}
		l.out = append(l.out, &writer{fd: fd})
		// It may be there or not; that the second command works is what counts.
		if _, err := l.mon.ask(dialTimeout, "object-del", map[string]any{"id": n.Reader.ID}, note); err != nil && !errors.Is(err, errRefused) {
			return err
		}
		props := map[string]any{"id": n.Reader.ID, "qom-type": n.Reader.Type}
		for k, v := range n.Reader.Props {
			props[k] = v
		}
		if _, err := l.mon.ask(dialTimeout, "object-add", props, note); err != nil {
			return fmt.Errorf("NIC %s: %w", n.Name, err)
		}
	}
	l.ev = nil
	var status, migrate struct{ Status string }
	for _, q := range []struct {
		command string
		into    any
	}{{"query-migrate", &migrate}, {"query-status", &status}} {
		text, err := l.mon.ask(dialTimeout, q.command, nil, note)
		if err == nil {
			err = json.Unmarshal(text, q.into)
		}
		if err != nil {
			return err
		}
	}
	// Whether it runs was asked last, so of what came meanwhile only COLO's beginning and end are news.
	l.ev = slices.DeleteFunc(l.ev, func(m message) bool { return m.Event != "MIGRATION" && m.Event != "COLO_EXIT" })
	l.inColo = migrate.Status == "colo"
	l.running = status.Status == "running"
	l.paused = status.Status == "paused"
	if !l.running { // the sockets are drained when the engine is told
		l.ev = append(l.ev, message{Event: "STOP"})
		l.running = true
	}
	return nil
}

func (l *loop) close() {
	fds := []int{l.wake}
	if l.mon != nil {
		fds = append(fds, l.mon.fd)
	}
	for _, r := range slices.Concat(l.pri, l.sec) {
		fds = append(fds, r.fd)
	}
	for _, w := range l.out {
		fds = append(fds, w.fd)
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// run turns until something ends.
func (l *loop) run(ctx context.Context) error {
	fds := make([]unix.PollFd, 0, 2+3*len(l.pri))
	add := func(fd int, events int16) {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: events}) //nolint:gosec // a file descriptor is small
	}
	again := true
	for !l.stop {
		if err := ctx.Err(); err != nil {
			return nil //nolint:nilerr // that is how it is ended
		}
		fds = fds[:0]
		add(l.wake, unix.POLLIN)
		add(l.mon.fd, unix.POLLIN)
		if len(l.mon.out) > 0 {
			fds[1].Events |= unix.POLLOUT
		}
		for i := range l.pri {
			add(l.pri[i].fd, unix.POLLIN)
			add(l.sec[i].fd, unix.POLLIN)
			add(l.out[i].fd, 0)
			if l.out[i].waiting() && !l.unsure {
				fds[len(fds)-1].Events = unix.POLLOUT
			}
		}
		wait := l.tick()
		if again || len(l.ev) > 0 {
			wait = 0
		}
		ts := unix.NsecToTimespec(int64(wait))
		if _, err := unix.Ppoll(fds, &ts, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if fds[0].Revents != 0 {
			l.serve()
		}
		for i := range l.out {
			if fds[4+3*i].Revents&(unix.POLLERR|unix.POLLHUP) != 0 {
				return fmt.Errorf("NIC %s: the way out: %w", l.cfg.NICs[i].Name, io.EOF)
			}
		}
		var err error
		if again, err = l.once(); err != nil {
			return err
		}
		l.turns++
	}
	return nil
}

// once reads all sockets and judges what has come. again means that there is more to read.
func (l *loop) once() (again bool, err error) {
	now := monotonic()
	for i, s := range l.sec {
		more := true
		for n := 0; more && n < readsATurn; n++ {
			if more, err = s.read(func(f compare.Frame) { l.eng.Secondary(now, f) }); err != nil {
				return false, fmt.Errorf("NIC %s: the secondary's packets: %w", l.cfg.NICs[i].Name, err)
			}
		}
		again = again || more
	}
	more, err := l.readPrimary(readsATurn)
	if err != nil {
		return false, err
	}
	// Events after packets: what was read before a RESUME that isn't there yet was sent before it.
	if err := l.readEvents(); err != nil {
		return false, err
	}
	if err := l.judge(now); err != nil {
		return false, err
	}
	if err := l.flush(); err != nil {
		return false, err
	}
	return again || more, l.mon.flush()
}

// readPrimary adds the primary's frames to the turn, at most so many reads of each socket; 0 is all there are.
func (l *loop) readPrimary(most int) (again bool, err error) {
	for i, s := range l.pri {
		more := true
		for n := 0; more && (most == 0 || n < most); n++ {
			if more, err = s.read(func(f compare.Frame) {
				f.Chunk.Keep()
				l.turn = append(l.turn, f)
			}); err != nil {
				return false, fmt.Errorf("NIC %s: the primary's packets: %w", l.cfg.NICs[i].Name, err)
			}
		}
		again = again || more
	}
	return again, nil
}

func (l *loop) readEvents() error {
	if err := l.mon.poll(func(m *message) { l.ev = append(l.ev, *m) }); err != nil {
		return fmt.Errorf("QMP: %w", err)
	}
	return nil
}

// judge gives the turn's packets and events to the engine, in an order that is true or safe.
func (l *loop) judge(now int64) error {
	for len(l.ev) > 0 {
		m := l.ev[0]
		l.ev = l.ev[1:]
		switch m.Event {
		case "STOP":
			if !l.running {
				continue
			}
			if !slices.ContainsFunc(l.ev, func(m message) bool { return m.Event == "RESUME" }) {
				// All that it said before is in the sockets: read it, and see that it did not run again meanwhile.
				l.give(now)
				if _, err := l.readPrimary(0); err != nil {
					return err
				}
				if err := l.readEvents(); err != nil {
					return err
				}
				if !slices.ContainsFunc(l.ev, func(m message) bool { return m.Event == "RESUME" }) {
					l.give(now)
				}
			}
			// Otherwise what was read may be of after it.
			l.running, l.stopAt, l.stopped = false, time.Now(), monotonic()-int64(m.Timestamp.age())
			l.eng.Stopped(now)
			id, err := l.mon.send("query-status", nil)
			if err != nil {
				return err
			}
			l.statusID = id
		case "RESUME":
			l.give(now)
			l.resumed(now)
		default:
			l.heed(&m)
		}
	}
	l.give(now)
	return nil
}

func (l *loop) give(now int64) {
	for i, f := range l.turn {
		l.eng.Primary(now, f)
		f.Chunk.Drop()
		l.turn[i] = compare.Frame{}
	}
	l.turn = l.turn[:0]
}

// resumed: the guest runs again, and with COLO that means that a checkpoint has ended, unless somebody had stopped it.
func (l *loop) resumed(now int64) {
	if l.running {
		return
	}
	l.running = true
	switch {
	case l.inColo && !l.paused:
		l.eng.Resumed(now)
		l.proven(l.stopped)
		l.pauses.add(time.Since(l.stopAt))
	default:
		l.eng.Continued(now)
	}
	l.paused, l.statusID = false, ""
}

// heed takes what QEMU says besides.
func (l *loop) heed(m *message) {
	switch {
	case m.Event == "MIGRATION":
		switch m.Data.Status {
		case "colo":
			l.inColo, l.began, l.entered = true, m.Timestamp, monotonic()
			l.proven(monotonic() - int64(m.Timestamp.age()))
		case "failed", "completed", "cancelled":
			l.hold("the migration is " + m.Data.Status)
		}
	case m.Event == "QUORUM_REPORT_BAD":
		// Held back for up to a second by QEMU, so it may be of before. Its clock counts only then: it may be set.
		early := m.Timestamp.before(l.began) && monotonic() < l.entered+int64(heldBack)
		if l.inColo && m.Data.Type != "read" && !early && !slices.Contains(l.failed, m.Data.NodeName) {
			l.failed = append(l.failed, m.Data.NodeName)
		}
	case m.Event == "COLO_EXIT":
		l.hold("QEMU has left COLO: " + m.Data.Reason)
	case m.Event != "" || m.ID == "":
	case m.ID == l.statusID:
		var st struct{ Status string }
		if m.Error == nil && json.Unmarshal(m.Return, &st) == nil && st.Status == "paused" {
			l.paused = true
		}
	case m.Error != nil:
		l.log.Warn("QEMU refused", "err", m.err())
	}
}

// hold lets nothing out any more: who may speak now is not the comparer's business. Before COLO there is nothing to hold.
func (l *loop) hold(why string) {
	if !l.inColo {
		return
	}
	l.log.Info("nothing leaves any more", "why", why)
	l.inColo, l.holdWhy = false, why
	l.eng.Hold()
	for _, o := range l.out {
		o.drop()
	}
}

// tick is how long there is nothing to do without a packet.
func (l *loop) tick() time.Duration {
	now, clock := time.Now(), monotonic()
	wait := time.Minute
	if next := l.eng.Tick(clock); next > 0 {
		wait = min(wait, max(0, time.Duration(next-clock)))
	}
	if l.unsure { // nobody says when the daemon has prolonged it
		wait = min(wait, lookAtLease)
	}
	if l.inColo && l.running && !l.eng.Live() { // began in the middle of COLO
		if now.Sub(l.askedAt) >= askAgain {
			l.askedAt = now
			l.force()
		}
		wait = min(wait, askAgain)
	}
	return wait
}

// do runs f in the loop. It returns when that is done, or false when the loop doesn't come to it before ctx ends.
func (l *loop) do(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	select {
	case l.control <- func() { f(); close(done) }:
	case <-ctx.Done():
		return false
	}
	_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *loop) serve() {
	var b [8]byte
	_, _ = unix.Read(l.wake, b[:])
	for {
		select {
		case f := <-l.control:
			f()
		default:
			return
		}
	}
}

// Run is the process: it compares until ctx ends or QEMU closes a socket, which is an error. dir has the configuration.
// A folder has one comparer at a time; ErrTaken says that it has one.
func Run(ctx context.Context, dir string, log *slog.Logger) error {
	cfg, err := readConfig(dir)
	if err != nil {
		return err
	}
	lock, err := takeLock(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	l := &loop{cfg: cfg, log: log, pool: new(compare.Pool), wake: wake, control: make(chan func(), 16), iov: make([][]byte, 0, 64)}
	defer l.close()
	l.eng = compare.New(cfg.Settings.engine(), l, l.pool)
	if l.lease, err = OpenLease(dir); err != nil {
		return err
	}
	defer l.lease.Close()
	l.lease.until.Store(0) // of before the machine's last start, perhaps
	if err := l.open(); err != nil {
		return err
	}
	stop, err := l.listen(filepath.Join(dir, socketFile))
	if err != nil {
		return err
	}
	defer stop()
	// Each packet waits for this process, which needs little: it should not wait for others. Without the right to it goes as it is.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, priority)
	log.Info("comparing", "vm", cfg.VM, "nics", len(cfg.NICs), "in_colo", l.inColo, "pid", os.Getpid())
	wakeUp := context.AfterFunc(ctx, func() { _, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	defer wakeUp()
	return l.run(ctx)
}
