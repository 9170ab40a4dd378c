package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"syscall"
)

// Status is the answer to query-status.
type Status struct {
	Running bool   `json:"running"`
	Status  string `json:"status"` // QEMU's RunState, such as "running", "paused", "colo", "finish-migrate"
}

// QueryStatus tells whether the guest's CPUs run.
func (c *Client) QueryStatus(ctx context.Context) (Status, error) {
	var s Status
	err := c.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// QueryVersion asks for QEMU's version; Greeting has it without asking.
func (c *Client) QueryVersion(ctx context.Context) (Version, error) {
	var v Version
	err := c.Execute(ctx, "query-version", nil, &v)
	return v, err
}

// Stop pauses the guest. It flushes all disks first, so it hangs while a disk
// does. A Stop that was freed by a yank says success; ask QueryStatus.
func (c *Client) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// Cont lets a paused guest run. Never use it between attaching an NBD child and
// the start of COLO, nor in the middle of a checkpoint.
func (c *Client) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// SystemPowerdown presses the guest's power button.
func (c *Client) SystemPowerdown(ctx context.Context) error {
	return c.Execute(ctx, "system_powerdown", nil, nil)
}

// SystemReset presses the guest's reset button.
func (c *Client) SystemReset(ctx context.Context) error {
	return c.Execute(ctx, "system_reset", nil, nil)
}

// Quit ends QEMU. The connection ends soon after; Done tells when. It is no
// error if QEMU is gone before it could answer.
func (c *Client) Quit(ctx context.Context) error {
	err := c.Execute(ctx, "quit", nil, nil)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// HumanMonitorCommand runs a command of the human monitor and returns what it
// printed. Errors are part of the text. For diagnosis only: the text isn't
// stable.
func (c *Client) HumanMonitorCommand(ctx context.Context, line string) (string, error) {
	var out string
	err := c.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &out)
	return out, err
}

// AnnounceSelf makes QEMU send gratuitous RARP packets for its NICs. Times are
// in milliseconds; zero values are replaced by 50, 550, 5 and 100.
type AnnounceSelf struct {
	Initial    int      `json:"initial"`
	Max        int      `json:"max"`
	Rounds     int      `json:"rounds"`
	Step       int      `json:"step"`
	Interfaces []string `json:"interfaces,omitempty"` // netdev or NIC names; all if empty
	ID         string   `json:"id,omitempty"`
}

// AnnounceSelf tells the switches where the guest's MAC addresses are now.
func (c *Client) AnnounceSelf(ctx context.Context, a AnnounceSelf) error {
	for _, f := range []struct {
		v *int
		d int
	}{{&a.Initial, 50}, {&a.Max, 550}, {&a.Rounds, 5}, {&a.Step, 100}} {
		if *f.v == 0 {
			*f.v = f.d
		}
	}
	return c.Execute(ctx, "announce-self", a, nil)
}

// YankInstance is a connection of QEMU that can be cut.
type YankInstance struct {
	Type     string `json:"type"` // "block-node", "chardev" or "migration"
	NodeName string `json:"node-name,omitempty"`
	ID       string `json:"id,omitempty"` // of a chardev
}

// QueryYank lists what can be yanked, out of band. The QMP monitors are in the
// list too; yanking them ends this connection.
func (c *Client) QueryYank(ctx context.Context) ([]YankInstance, error) {
	var l []YankInstance
	err := c.ExecuteOOB(ctx, "query-yank", nil, &l)
	return l, err
}

// Yank cuts connections, out of band, and so frees whatever waits for them. It
// does nothing for an NBD client that is still connecting. If one of the
// instances doesn't exist QEMU refuses and none is cut: choose them from
// QueryYank.
func (c *Client) Yank(ctx context.Context, instances ...YankInstance) error {
	if instances == nil {
		instances = []YankInstance{}
	}
	return c.ExecuteOOB(ctx, "yank", map[string]any{"instances": instances}, nil)
}

// QueryQMPSchema returns QEMU's description of its own protocol, some 250 KB.
// Probe makes it into a Features.
func (c *Client) QueryQMPSchema(ctx context.Context) (json.RawMessage, error) {
	var raw json.RawMessage
	err := c.Execute(ctx, "query-qmp-schema", nil, &raw)
	return raw, err
}
