package netcompare

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// undoTimeout bounds the undoing of what was begun, which must go on when the caller's context has ended.
const undoTimeout = 5 * time.Second

// part is an object or a chardev that we add to a running QEMU.
type part struct {
	id     string
	kind   string // QOM type; "" for a chardev
	props  map[string]any
	socket qmp.ChardevSocket
	sink   bool // a chardev that is always open and takes everything
}

func (p part) add(ctx context.Context, c *qmp.Client) error {
	if p.sink {
		backend := map[string]any{"type": "file", "data": map[string]any{"out": "/dev/null"}}
		if err := c.Execute(ctx, "chardev-add", map[string]any{"id": p.id, "backend": backend}, nil); err != nil {
			return fmt.Errorf("chardev %s: %w", p.id, err)
		}
		return nil
	}
	if p.kind == "" {
		if err := c.ChardevAddSocket(ctx, p.id, p.socket); err != nil {
			return fmt.Errorf("chardev %s: %w", p.id, err)
		}
		return nil
	}
	if err := c.ObjectAdd(ctx, p.kind, p.id, p.props); err != nil {
		return fmt.Errorf("%s %s: %w", p.kind, p.id, err)
	}
	return nil
}

// build adds parts in their order. If one can't be added, those before it are removed again.
func build(ctx context.Context, c *qmp.Client, parts []part) error {
	for i, p := range parts {
		err := p.add(ctx, c)
		if err == nil {
			continue
		}
		added := parts[:i]
		if w := (*qmp.WaitError)(nil); errors.As(err, &w) {
			added = parts[:i+1] // only the waiting ended: QEMU may still do it, and the undoing queues behind it
		}
		return undoing(ctx, err, func(ctx context.Context) error { return remove(ctx, c, added) })
	}
	return nil
}

// undoing runs undo after err, also when it was the end of ctx, and returns err with what undo may add to it.
// A QEMU that is gone has nothing to undo.
func undoing(ctx context.Context, err error, undo func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if uerr := undo(ctx); uerr != nil && !errors.Is(uerr, qmp.ErrClosed) {
		return errors.Join(err, fmt.Errorf("undo: %w", uerr))
	}
	return err
}

func remove(ctx context.Context, c *qmp.Client, parts []part) error {
	have, err := look(ctx, c)
	if err != nil {
		return err
	}
	return have.remove(ctx, c, parts)
}

// remove takes away those of parts that QEMU has: objects in reverse order, then chardevs, which must not be in use.
func (have inventory) remove(ctx context.Context, c *qmp.Client, parts []part) error {
	errs := []error{have.quiet(ctx, c, parts)}
	for _, objects := range []bool{true, false} {
		for i := len(parts) - 1; i >= 0; i-- {
			p := parts[i]
			switch {
			case p.kind != "" && objects && have.objects[p.id]:
				if err := c.ObjectDel(ctx, p.id); err != nil {
					errs = append(errs, fmt.Errorf("%s %s: %w", p.kind, p.id, err))
				}
			case p.kind == "" && !objects && have.chardevs[p.id].Label != "":
				if err := c.ChardevRemove(ctx, p.id); err != nil {
					errs = append(errs, fmt.Errorf("chardev %s: %w", p.id, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// comparerRest is how long a comparer is left alone before it is removed: longer than the usual scan cycles, and than packets take that are on their way to it.
const comparerRest = 60 * time.Millisecond

// quiet lets QEMU's comparers come to rest before they are removed. Each has a thread of its own, and QEMU's removal doesn't wait for that to be done with a packet, or
// with its look at old ones, but frees what it works on: two of some fifty removals under load have ended QEMU, with a broken heap. So they get nothing any more (their filters are off),
// and don't look at old packets for an hour.
func (have inventory) quiet(ctx context.Context, c *qmp.Client, parts []part) error {
	var errs []error
	var rest time.Duration // 0: there is none
	for _, p := range parts {
		if p.kind == "colo-compare" && have.objects[p.id] {
			rest = max(rest, comparerRest)
			var cycle int64 // milliseconds; it counts until the comparer has looked once more
			if c.QOMGet(ctx, "/objects/"+p.id, "expired_scan_cycle", &cycle) == nil {
				rest = max(rest, min(time.Duration(cycle)*time.Millisecond+comparerRest/2, time.Second))
			}
			errs = append(errs, c.QOMSet(ctx, "/objects/"+p.id, "expired_scan_cycle", time.Hour.Milliseconds()))
		}
	}
	if rest == 0 {
		return nil
	}
	t := time.NewTimer(rest) // QEMU has no event for it
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return errors.Join(errs...)
}

// inventory is what a QEMU has. Going by it is what makes removing idempotent: QEMU's refusals of unknown ids have no
// class of their own to be told by.
type inventory struct {
	objects  map[string]bool
	chardevs map[string]qmp.Chardev
}

func look(ctx context.Context, c *qmp.Client) (inventory, error) {
	inv := inventory{objects: map[string]bool{}, chardevs: map[string]qmp.Chardev{}}
	objects, err := c.QOMList(ctx, "/objects")
	if err != nil {
		return inv, fmt.Errorf("list objects: %w", err)
	}
	for _, o := range objects {
		if strings.HasPrefix(o.Type, "child<") {
			inv.objects[o.Name] = true
		}
	}
	chardevs, err := c.QueryChardev(ctx)
	if err != nil {
		return inv, fmt.Errorf("list chardevs: %w", err)
	}
	for _, ch := range chardevs {
		inv.chardevs[ch.Label] = ch
	}
	return inv, nil
}

// filter makes a net filter of n.
func (n NIC) filter(kind, id string, props map[string]any) part {
	props["netdev"] = n.netdev()
	if n.vnetHdr() {
		props["vnet_hdr_support"] = true
	}
	return part{id: id, kind: kind, props: props}
}
