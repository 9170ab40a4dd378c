package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

// SpecText is a VM's spec as its owner wrote it. The server reads it, so that errors name lines.
type SpecText struct {
	YAML   []byte
	File   string // for messages
	Reason string // for the history
}

func (t SpecText) header() http.Header {
	h := http.Header{}
	if t.File != "" {
		h.Set("Colo-File", strings.Map(printable, t.File))
	}
	return h
}

func (t SpecText) query() url.Values { return reasonQuery(t.Reason) }

func reasonQuery(reason string) url.Values {
	q := url.Values{}
	if reason != "" {
		q.Set("reason", reason)
	}
	return q
}

// DeleteRequest tunes the deletion of a VM.
type DeleteRequest struct {
	Images bool   // delete its disk images too
	Reason string // for the history
}

// printable keeps what may be in a header.
func printable(r rune) rune {
	if r < ' ' || r > '~' {
		return '?'
	}
	return r
}

// Node asks the daemon about itself.
func (c *Client) Node(ctx context.Context) (out NodeStatus, err error) {
	_, err = c.do(ctx, &call{method: "GET", path: []string{"v1", "node"}}, &out)
	return out, err
}

// Health asks whether the daemon is well. An answer that it isn't, which comes with the status of an error, is none here.
func (c *Client) Health(ctx context.Context) (out Health, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url(&call{path: []string{"v1", "health"}}), nil)
	if err != nil {
		return out, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return out, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		return out, c.refusal(resp)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil || out.Node == "" {
		return out, fmt.Errorf("%s: %w: %w", c.where, ErrUnreachable, errGarbled)
	}
	return out, nil
}

// VMs lists the VMs with their status.
func (c *Client) VMs(ctx context.Context) ([]colo.Status, error) {
	var out VMList
	_, err := c.do(ctx, &call{method: "GET", path: []string{"v1", "vms"}}, &out)
	return out.VMs, err
}

// VM returns one with its spec.
func (c *Client) VM(ctx context.Context, vm string) (out VM, err error) {
	_, err = c.do(ctx, &call{method: "GET", path: []string{"v1", "vms", vm}}, &out)
	return out, err
}

// Create makes a VM from its spec.
func (c *Client) Create(ctx context.Context, s SpecText) (out VM, err error) {
	_, err = c.do(ctx, &call{method: "POST", path: []string{"v1", "vms"}, query: s.query(), body: s.YAML, media: mediaYAML, header: s.header()}, &out)
	return out, err
}

// CheckCreate tells why Create would be refused now.
func (c *Client) CheckCreate(ctx context.Context, s SpecText) error {
	_, err := c.do(ctx, &call{method: "POST", path: []string{"v1", "vms"}, query: dryQuery(), body: s.YAML, media: mediaYAML, header: s.header()}, nil)
	return err
}

func dryQuery() url.Values { return url.Values{"dry_run": {"true"}} }

// Delete forgets a VM and, when asked, deletes its images.
func (c *Client) Delete(ctx context.Context, vm string, r DeleteRequest) error {
	q := reasonQuery(r.Reason)
	if r.Images {
		q.Set("images", "true")
	}
	_, err := c.do(ctx, &call{method: "DELETE", path: []string{"v1", "vms", vm}, query: q}, nil)
	return err
}

// CheckDelete tells why Delete would be refused now.
func (c *Client) CheckDelete(ctx context.Context, vm string) error {
	_, err := c.do(ctx, &call{method: "DELETE", path: []string{"v1", "vms", vm}, query: dryQuery()}, nil)
	return err
}

// Spec returns a VM's spec in YAML, and its tag.
func (c *Client) Spec(ctx context.Context, vm string) (text []byte, tag string, err error) {
	h, err := c.do(ctx, &call{method: "GET", path: []string{"v1", "vms", vm, "spec"}, header: http.Header{"Accept": {mediaYAML}}}, &text)
	if err != nil {
		return nil, "", err
	}
	return text, strings.Trim(h.Get("ETag"), `"`), nil
}

// SetSpec changes a VM's spec. With a tag it must still be the one that [Client.Spec] returned with it, otherwise the error is [colo.ErrSpecChanged].
func (c *Client) SetSpec(ctx context.Context, vm string, s SpecText, tag string) (out VM, err error) {
	_, err = c.do(ctx, specCall(vm, s, tag, s.query()), &out)
	return out, err
}

// CheckSpec tells why SetSpec would be refused now.
func (c *Client) CheckSpec(ctx context.Context, vm string, s SpecText, tag string) error {
	_, err := c.do(ctx, specCall(vm, s, tag, dryQuery()), nil)
	return err
}

func specCall(vm string, s SpecText, tag string, q url.Values) *call {
	h := s.header()
	if tag != "" {
		h.Set("If-Match", `"`+tag+`"`)
	}
	return &call{method: "PUT", path: []string{"v1", "vms", vm, "spec"}, query: q, body: s.YAML, media: mediaYAML, header: h}
}

// Status tells how a VM stands; with both also on the peer, as the node hears from it.
func (c *Client) Status(ctx context.Context, vm string, both bool) (out BothStatus, err error) {
	q := url.Values{}
	if both {
		q.Set("both", "true")
	}
	_, err = c.do(ctx, &call{method: "GET", path: []string{"v1", "vms", vm, "status"}, query: q}, &out)
	return out, err
}

// History returns what the node remembers of a VM, or of all when vm is empty. Of q it uses After, Since and Limit.
func (c *Client) History(ctx context.Context, vm string, q state.Query) ([]state.Entry, error) {
	v := url.Values{}
	if q.After > 0 {
		v.Set("after", strconv.FormatUint(q.After, 10))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.Format(time.RFC3339Nano))
	}
	path := []string{"v1", "history"}
	if vm != "" {
		path = []string{"v1", "vms", vm, "history"}
	}
	var out History
	_, err := c.do(ctx, &call{method: "GET", path: path, query: v}, &out)
	return out.Entries, err
}

// Start boots a VM. Like all that follow it returns an operation that goes on by itself; see [Client.Wait].
func (c *Client) Start(ctx context.Context, vm string, r Request) (Operation, error) {
	return c.act(ctx, vm, "start", r)
}

// StartWith is Start with options.
func (c *Client) StartWith(ctx context.Context, vm string, r StartRequest) (Operation, error) {
	return c.act(ctx, vm, "start", r)
}

// Stop shuts a VM down.
func (c *Client) Stop(ctx context.Context, vm string, r StopRequest) (Operation, error) {
	return c.act(ctx, vm, "stop", r)
}

// Protect makes a VM redundant.
func (c *Client) Protect(ctx context.Context, vm string, r ResyncRequest) (Operation, error) {
	return c.act(ctx, vm, "protect", r)
}

// Resync makes the peer's disks equal again in the mode that r names, and protects the VM.
func (c *Client) Resync(ctx context.Context, vm string, r ResyncRequest) (Operation, error) {
	return c.act(ctx, vm, "resync", r)
}

// TuneResync changes the limit of a resync that runs, pauses it or lets it go on.
func (c *Client) TuneResync(ctx context.Context, vm string, r TuneRequest) error {
	return c.tune(ctx, vm, nil, r)
}

// CheckTuneResync tells why TuneResync would be refused now.
func (c *Client) CheckTuneResync(ctx context.Context, vm string, r TuneRequest) error {
	return c.tune(ctx, vm, dryQuery(), r)
}

func (c *Client) tune(ctx context.Context, vm string, q url.Values, r TuneRequest) error {
	body, err := jsonBody(r)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, &call{method: "PATCH", path: []string{"v1", "vms", vm, "resync"}, query: q, body: body}, nil)
	return err
}

// Verify compares both halves of a protected VM's disks.
func (c *Client) Verify(ctx context.Context, vm string, r VerifyRequest) (Operation, error) {
	return c.act(ctx, vm, "verify", r)
}

// DiskOffline takes this node's half of a disk out of service, DiskOnline takes it back.
func (c *Client) DiskOffline(ctx context.Context, vm, disk string, r Request) error {
	return c.setDisk(ctx, vm, disk, "offline", nil, r)
}

// DiskOnline is the opposite of DiskOffline.
func (c *Client) DiskOnline(ctx context.Context, vm, disk string, r Request) error {
	return c.setDisk(ctx, vm, disk, "online", nil, r)
}

// CheckDisk tells why DiskOnline, or DiskOffline, would be refused now.
func (c *Client) CheckDisk(ctx context.Context, vm, disk string, online bool) error {
	verb := "offline"
	if online {
		verb = "online"
	}
	return c.setDisk(ctx, vm, disk, verb, dryQuery(), Request{})
}

func (c *Client) setDisk(ctx context.Context, vm, disk, verb string, q url.Values, r Request) error {
	body, err := jsonBody(r)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, &call{method: "POST", path: []string{"v1", "vms", vm, "disks", disk, verb}, query: q, body: body}, nil)
	return err
}

// Unprotect lets a VM run alone.
func (c *Client) Unprotect(ctx context.Context, vm string, r Request) (Operation, error) {
	return c.act(ctx, vm, "unprotect", r)
}

// Checkpoint makes both copies of a protected VM equal now.
func (c *Client) Checkpoint(ctx context.Context, vm string, r Request) (Operation, error) {
	return c.act(ctx, vm, "checkpoint", r)
}

// RestoreRecord gives an arbiter that has lost its memory the record of a VM that runs.
func (c *Client) RestoreRecord(ctx context.Context, vm string, r Request) (Operation, error) {
	return c.act(ctx, vm, "restore-record", r)
}

// Switchover gives the primary's role to the peer.
func (c *Client) Switchover(ctx context.Context, vm string, r Request) (Operation, error) {
	return c.act(ctx, vm, "switchover", r)
}

// Failover lets a copy that waits for the arbiter's word go on without it.
func (c *Client) Failover(ctx context.Context, vm string, r FailoverRequest) (Operation, error) {
	return c.act(ctx, vm, "failover", r)
}

// act sends a request that leads to an operation, a second time if the first had no answer: the server knows it again by its key.
func (c *Client) act(ctx context.Context, vm, kind string, in any) (out Operation, err error) {
	body, err := jsonBody(in)
	if err != nil {
		return out, err
	}
	k := &call{method: "POST", path: []string{"v1", "vms", vm, kind}, body: body, header: http.Header{"Idempotency-Key": {newKey()}}}
	for range 2 {
		out = Operation{}
		if _, err = c.do(ctx, k, &out); !errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			break
		}
	}
	return out, err
}

// DryRun tells what a request of the given kind (start, stop, protect, unprotect, switchover, resync, failover) would do. in is its body.
func (c *Client) DryRun(ctx context.Context, vm, kind string, in any) (out DryRun, err error) {
	body, err := jsonBody(in)
	if err != nil {
		return out, err
	}
	_, err = c.do(ctx, &call{method: "POST", path: []string{"v1", "vms", vm, kind}, query: url.Values{"dry_run": {"true"}}, body: body}, &out)
	return out, err
}
