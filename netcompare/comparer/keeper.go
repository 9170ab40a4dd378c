package comparer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lookEvery  = 500 * time.Millisecond
	answerTime = time.Second           // how long a comparer may take to answer before it is ended
	retryTime  = 50 * time.Millisecond // between two attempts to start it
)

// Keeper keeps the comparer of one folder running. Start or Adopt may be called once, Stop or Leave any number of times.
type Keeper struct {
	Dir     string
	Command []string // with its arguments; the folder is added
	Log     *slog.Logger

	starts atomic.Int64
	last   atomic.Pointer[Status]
	quit   context.CancelFunc
	ended  chan struct{}
	once   sync.Once

	leasing sync.Mutex
	lease   *Lease // nil before the first one, and after Leave
	left    bool
}

// Start writes the configuration, starts the comparer and returns when it has connected to QEMU. From then on it is started
// again whenever it ends.
func (k *Keeper) Start(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return fmt.Errorf("comparer: %w", err)
	}
	if err := k.end(ctx); err != nil { // of an earlier attempt
		return err
	}
	if err := writeConfig(k.Dir, cfg); err != nil {
		return fmt.Errorf("comparer: %w", err)
	}
	k.keep()
	client := NewClient(k.Dir)
	defer client.Close()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := client.Status(ctx)
		if err == nil && s.VM == cfg.VM {
			k.last.Store(&s)
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the comparer doesn't start: %w: %s", context.Cause(ctx), k.lastWords()), k.Stop(context.WithoutCancel(ctx)))
		}
	}
}

// Adopt takes over the comparer that an earlier Keeper has started in this folder. It says false when there is none.
func (k *Keeper) Adopt() bool {
	if _, err := os.Stat(filepath.Join(k.Dir, configFile)); err != nil {
		return false
	}
	k.keep()
	return true
}

// Starts is how often the comparer was started by this Keeper.
func (k *Keeper) Starts() int64 { return k.starts.Load() }

// Last is what the comparer said last; nil if it never has.
func (k *Keeper) Last() *Status { return k.last.Load() }

// Client speaks to the comparer.
func (k *Keeper) Client() *Client { return NewClient(k.Dir) }

func (k *Keeper) keep() {
	ctx, cancel := context.WithCancel(context.Background())
	k.quit, k.ended = cancel, make(chan struct{})
	go k.follow(ctx)
}

// follow belongs to the Keeper; Leave waits for it.
func (k *Keeper) follow(ctx context.Context) {
	defer close(k.ended)
	client := NewClient(k.Dir)
	defer client.Close()
	for ctx.Err() == nil {
		exited := k.start()
		for k.lives(ctx, client, exited) {
		}
		if ctx.Err() != nil {
			return
		}
		// It is gone, or as good as gone.
		if err := k.end(ctx); err != nil {
			k.Log.Error("end the comparer", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryTime):
		}
	}
}

// start starts the comparer unless the folder has one. The channel is closed at the end of one that it has started.
func (k *Keeper) start() <-chan struct{} {
	exited := make(chan struct{})
	if pid := k.pid(); pid != 0 {
		return nil
	}
	out, err := os.OpenFile(filepath.Join(k.Dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		k.Log.Error("start the comparer", "err", err)
		close(exited)
		return exited
	}
	defer out.Close()
	cmd := exec.Command(k.Command[0], append(k.Command[1:len(k.Command):len(k.Command)], k.Dir)...) //nolint:noctx // it must not end with a context of ours
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		k.Log.Error("start the comparer", "err", err)
		close(exited)
		return exited
	}
	k.starts.Add(1)
	go func() { // ends with the process, which somebody must reap
		err := cmd.Wait()
		k.Log.Debug("the comparer ended", "err", err)
		close(exited)
	}()
	return exited
}

// lives waits for a moment and says whether the comparer is well.
func (k *Keeper) lives(ctx context.Context, client *Client, exited <-chan struct{}) bool {
	actx, cancel := context.WithTimeout(ctx, answerTime)
	s, err := client.Status(actx)
	cancel()
	if err == nil {
		k.last.Store(&s)
	} else if pid := k.pid(); pid == 0 && exited == nil {
		return false
	} else if pid != 0 && errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		k.Log.Warn("the comparer doesn't answer", "pid", pid)
		return false
	}
	wait := lookEvery
	if err != nil {
		wait = retryTime
	}
	select {
	case <-exited:
		return false
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// pid is the process that has the folder's lock; 0 if none has.
func (k *Keeper) pid() int {
	f, err := os.OpenFile(filepath.Join(k.Dir, lockFile), os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return 0 // the lock ends with its process, and this one with f
	}
	var b [32]byte
	n, _ := f.ReadAt(b[:], 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid <= 1 {
		return 0
	}
	return pid
}

// end kills the process that has the folder's lock, and waits until it has let go of it. It has nothing that it could lose.
func (k *Keeper) end(ctx context.Context) error {
	for deadline := time.Now().Add(5 * time.Second); ; {
		pid := k.pid()
		if pid == 0 {
			return nil
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not end", pid)
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Until prolongs the time in which the comparer is sure of the secondary, see [Lease].
func (k *Keeper) Until(t time.Time) error {
	k.leasing.Lock()
	defer k.leasing.Unlock()
	if k.left {
		return nil
	}
	if k.lease == nil {
		var err error
		if k.lease, err = OpenLease(k.Dir); err != nil {
			return err
		}
	}
	k.lease.Until(t)
	return nil
}

// Leave lets the comparer run on without this Keeper.
func (k *Keeper) Leave() {
	k.once.Do(func() {
		k.leasing.Lock()
		k.left = true
		if k.lease != nil {
			if err := k.lease.Close(); err != nil {
				k.Log.Warn("the comparer's lease", "err", err)
			}
		}
		k.leasing.Unlock()
		if k.quit != nil {
			k.quit()
			<-k.ended
		}
	})
}

// Stop ends the comparer and removes its files but its log. QEMU drops what the guest says from then on, until its filters
// are taken away.
func (k *Keeper) Stop(ctx context.Context) error {
	k.Leave()
	errs := []error{k.end(ctx)}
	for _, f := range []string{configFile, socketFile, lockFile, leaseFile} {
		if err := os.Remove(filepath.Join(k.Dir, f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (k *Keeper) lastWords() string {
	text, err := os.ReadFile(filepath.Join(k.Dir, logFile))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}
