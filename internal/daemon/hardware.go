package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// hardware is a watchdog of the machine's: it resets the host when it is not fed for its timeout.
type hardware struct {
	dev     device
	timeout time.Duration
	log     *slog.Logger
}

// device is an open /dev/watchdog, but for tests.
type device interface {
	io.WriteCloser
	// SetTimeout asks for a timeout and returns the one that the device took.
	SetTimeout(d time.Duration) (time.Duration, error)
}

type watchdogFile struct{ *os.File }

func (f watchdogFile) SetTimeout(d time.Duration) (time.Duration, error) {
	fd := int(f.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.WDIOC_SETTIMEOUT, int((d+time.Second-1)/time.Second)); err != nil {
		return 0, err
	}
	s, err := unix.IoctlGetInt(fd, unix.WDIOC_GETTIMEOUT)
	return time.Duration(s) * time.Second, err
}

// openHardware arms the watchdog: from here on the host is reset unless it is fed.
func openHardware(path string, timeout time.Duration, log *slog.Logger) (*hardware, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: another program feeds it, systemd perhaps (RuntimeWatchdogSec in system.conf)", err)
	}
	if err != nil {
		return nil, err
	}
	h, err := newHardware(watchdogFile{f}, timeout, log.With("device", path))
	if err != nil {
		_, _ = f.WriteString("V")
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return h, nil
}

func newHardware(dev device, timeout time.Duration, log *slog.Logger) (*hardware, error) {
	took, err := dev.SetTimeout(timeout)
	switch {
	case errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP):
		return nil, fmt.Errorf("its timeout can't be set, so nobody knows how often it must be fed: %w", err)
	case err != nil:
		return nil, fmt.Errorf("set its timeout to %s: %w", timeout, err)
	case took > 2*timeout:
		return nil, fmt.Errorf("it took a timeout of %s where %s was asked for", took, timeout)
	}
	return &hardware{dev: dev, timeout: took, log: log}, nil
}

// feed keeps the host from being reset for as long as healthy returns nil, until ctx ends. A check that hangs or fails starves the watchdog.
func (h *hardware) feed(ctx context.Context, healthy func() error) {
	(&notifier{log: h.log, send: func(string) {
		if _, err := h.dev.Write([]byte{0}); err != nil {
			h.log.Error("the watchdog was not fed", "err", err)
		}
	}}).watch(ctx, h.timeout/4, healthy)
}

// close lets go of the device. Where a primary would be left without anybody who could silence it the watchdog stays armed: a daemon that is back within the timeout goes on
// feeding it, otherwise the host is reset.
func (h *hardware) close(unattended []string) error {
	if len(unattended) > 0 {
		h.log.Warn("the watchdog stays armed: start the daemon again in time, or this host is reset", "within", h.timeout, "primaries", unattended)
		_, err := h.dev.Write([]byte{0})
		return errors.Join(err, h.dev.Close())
	}
	_, err := h.dev.Write([]byte("V")) // the word for: on purpose
	h.log.Info("the watchdog is disarmed")
	return errors.Join(err, h.dev.Close())
}

// arm opens the watchdog that is configured.
func (d *node) arm(ctx context.Context, end *closing) error {
	w := d.cfg.Watchdog
	if w.Device == "" {
		return nil
	}
	h, err := openHardware(w.Device, time.Duration(w.Timeout), d.log.With("node", d.cfg.Node))
	if err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	fctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); h.feed(fctx, d.healthy) }()
	// Before the engine is closed: who runs here is known until then.
	end.add(func() error { stop(); <-done; return h.close(d.node.Unattended()) })
	h.log.Info("the watchdog is armed", "timeout", h.timeout)
	return nil
}
