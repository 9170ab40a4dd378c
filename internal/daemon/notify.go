package daemon

import (
	"context"
	"log/slog"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// notifier tells the service manager how the daemon is, if there is one that listens.
type notifier struct {
	log *slog.Logger
	// send is sd_notify, but for tests.
	send func(state string)
}

func newNotifier(log *slog.Logger) *notifier {
	return &notifier{log: log, send: func(state string) {
		if _, err := sd.SdNotify(false, state); err != nil {
			log.Warn("the service manager was not told", "err", err)
		}
	}}
}

func (n *notifier) ready(status string) {
	if status != "" {
		status = "\nSTATUS=" + status
	}
	n.send(sd.SdNotifyReady + status)
}

func (n *notifier) stopping() { n.send(sd.SdNotifyStopping + "\nSTATUS=ending: QEMUs run on") }

func (n *notifier) reloading() { n.send(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec()) }

// watchdog says that the daemon lives for as long as healthy returns, until ctx ends. A check that hangs or fails keeps it silent, and the service manager restarts the
// daemon; QEMUs don't notice.
func (n *notifier) watchdog(ctx context.Context, healthy func() error) {
	every, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Warn("the service manager's watchdog is not usable", "err", err)
	}
	if every <= 0 {
		return
	}
	n.watch(ctx, every/3, healthy)
}

func (n *notifier) watch(ctx context.Context, every time.Duration, healthy func() error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	answers := make(chan error, 1)
	asking := false
	for {
		select {
		case <-tick.C:
			if !asking {
				asking = true
				go func() { answers <- healthy() }() // when it hangs the process is about to be killed; nothing waits for it
			}
		case err := <-answers:
			asking = false
			if err != nil {
				n.log.Error("the daemon is not well: its watchdog is not fed", "err", err)
				continue
			}
			n.send(sd.SdNotifyWatchdog)
		case <-ctx.Done():
			return
		}
	}
}
