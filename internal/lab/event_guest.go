package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/guest/service"
)

// tellGuest posts to the guest.
func (r *Run) tellGuest(ctx context.Context, path string) error {
	client := newHTTPClient(r.Lab.Dial, 30*time.Second)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+guestAddr(service.PortHTTP)+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body) // what it says doesn't matter
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the guest answers %s to %s", resp.Status, path)
	}
	return nil
}

// guestReboot: the guest restarts itself, and goes on to be protected.
var guestReboot = Step{Name: "the guest reboots", Do: func(ctx context.Context, r *Run) error {
	r.Tell.Say("the guest reboots itself")
	r.mark(true, "the guest reboots")
	l := loss{at: time.Now(), planned: true}
	if err := r.tellGuest(ctx, "/reboot"); err != nil {
		return err
	}
	err := poll(ctx, func() (bool, error) {
		n := r.Clients.HTTP.BootIDs()
		return n > 1, fmt.Errorf("the guest was not booted again")
	})
	if err != nil {
		return err
	}
	if err := r.served(ctx, l, "the guest"); err != nil {
		return err
	}
	r.healed = l.at
	return r.protectedStill(ctx)
}}

// guestShutdown: the guest switches itself off. The VM is off then, on both nodes, and stays so until a person starts it.
var guestShutdown = Step{Name: "the guest shuts down", Do: func(ctx context.Context, r *Run) error {
	r.Tell.Say("the guest switches itself off")
	r.mark(true, "the guest shuts down")
	r.outage = loss{at: time.Now(), planned: true}
	if err := r.tellGuest(ctx, "/poweroff"); err != nil {
		return err
	}
	if err := poll(ctx, func() (bool, error) { return r.isOff(ctx) }); err != nil {
		return err
	}
	r.Tell.Say("the VM is off on both nodes")
	// Longer than the daemons wait before they start or protect anything.
	if err := pause(ctx, 12*time.Second); err != nil {
		return err
	}
	if off, err := r.isOff(ctx); !off {
		return fmt.Errorf("it did not stay off: %w", err)
	}
	return nil
}}

// isOff tells whether no copy runs, and otherwise what does.
func (r *Run) isOff(ctx context.Context) (bool, error) {
	var found []string
	running, stopped := 0, ""
	for _, name := range NodeNames {
		s, err := r.Lab.Node(name).Status(ctx)
		if err != nil {
			return false, err
		}
		if s.PID != 0 {
			running++
		}
		if s.State == colo.Stopped {
			stopped = name
		}
		found = append(found, fmt.Sprintf("%s: %s (%s)", name, s.State, s.Why))
	}
	r.lost = stopped
	return running == 0 && stopped != "", fmt.Errorf("the VM is not off: %s", strings.Join(found, "; "))
}

// startAgain is what a person does with a VM that is off.
var startAgain = Step{Name: "a person starts it again", Do: func(ctx context.Context, r *Run) error {
	n := r.Lab.Node(r.lost)
	r.Tell.Say("%s: a person starts it again", n.Name)
	op, err := n.Client.Start(ctx, VM, api.Request{Reason: "it was off"})
	if err := await(ctx, n, op, err); err != nil {
		return err
	}
	if err := r.served(ctx, r.outage, n.Name); err != nil {
		return err
	}
	r.healed = time.Now()
	if err := r.Lab.Protect(ctx); err != nil {
		return err
	}
	return r.protectedStill(ctx)
}}
