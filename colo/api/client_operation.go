package api

import (
	"context"
	"errors"
	"net/url"
	"strconv"
	"time"
)

// Operations lists those that the daemon remembers, of one VM or of all.
func (c *Client) Operations(ctx context.Context, vm string) ([]Operation, error) {
	q := url.Values{}
	if vm != "" {
		q.Set("vm", vm)
	}
	var out OperationList
	_, err := c.do(ctx, &call{method: "GET", path: []string{"v1", "operations"}, query: q}, &out)
	return out.Operations, err
}

// Operation reads one, after waiting up to wait for its end.
func (c *Client) Operation(ctx context.Context, id string, wait time.Duration) (out Operation, err error) {
	q := url.Values{}
	if wait > 0 {
		q.Set("wait", strconv.FormatFloat(min(wait, maxWait).Seconds(), 'f', 3, 64))
	}
	_, err = c.do(ctx, &call{method: "GET", path: []string{"v1", "operations", id}, query: q}, &out)
	return out, err
}

// Cancel asks for an operation to be taken back. It returns at once.
func (c *Client) Cancel(ctx context.Context, id string) (out Operation, err error) {
	_, err = c.do(ctx, &call{method: "POST", path: []string{"v1", "operations", id, "cancel"}}, &out)
	return out, err
}

// A waiting client looks this often how far an operation is, and puts up with a daemon that doesn't answer for so long.
const (
	waitLook     = time.Second
	waitPatience = 30 * time.Second
)

// Wait returns when an operation has ended, with its error if it has one. seen, if not nil, is called from time to time with how far it is.
// After a restart of the daemon the error is [ErrNoOperation]: the VM's status tells what became of it.
func (c *Client) Wait(ctx context.Context, id string, seen func(Operation)) (Operation, error) {
	var last Operation
	var silent time.Time
	for {
		look := waitLook
		if seen == nil {
			look = 30 * time.Second
		}
		op, err := c.Operation(ctx, id, look)
		switch {
		case ctx.Err() != nil:
			return last, context.Cause(ctx)
		case errors.Is(err, ErrUnreachable) || errors.Is(err, ErrBusy):
			if silent.IsZero() {
				silent = time.Now()
			}
			if time.Since(silent) > waitPatience {
				return last, err
			}
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return last, err
		}
		last, silent = op, time.Time{}
		if seen != nil {
			seen(op)
		}
		if op.State != Running {
			return op, op.Err()
		}
	}
}
