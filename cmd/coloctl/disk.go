package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/lab"
)

func diskCommand(r rules) *cli.Command {
	half := operands{min: 3, max: 3, usage: "VM DISK NODE"}
	return group(&cli.Command{Name: "disk", Usage: "VMs' disks: their halves and images", Subcommands: append([]*cli.Command{
		r.remote(&cli.Command{Name: "list", Usage: "list the halves of a VM's disks, on both nodes", Action: withSite(diskList)}, operands{min: 1, max: 1, usage: "VM"}),
		r.change(&cli.Command{Name: "offline", Usage: "take one half out of service while the guest runs", Action: withSite(diskOffline)}, half),
		r.change(&cli.Command{Name: "online", Usage: "take a half back into service; it is made equal when the VM is protected next", Action: withSite(diskOnline)}, half),
		r.operation(&cli.Command{Name: "verify", Usage: "compare both halves of all disks of a protected VM while it runs", Flags: []cli.Flag{
			&cli.StringFlag{Name: "limit", Usage: "read at most this much a second of each half, such as 50MiB"},
			&cli.BoolFlag{Name: "repair", Usage: "copy what differs from the primary's half again; the VM is unprotected for a moment"},
		}, Action: withSite(action{
			kind: "verify", body: verifyBody,
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.Verify(ctx, vm, body.(api.VerifyRequest))
			},
		}.run)}, operands{min: 1, max: 1, usage: "VM"}),
	}, imageCommands(r)...)})
}

func verifyBody(cc *cli.Context, _ string) (any, error) {
	limit, err := colo.ParseSize(cc.String("limit"))
	if cc.IsSet("limit") && err != nil {
		return nil, usagef("--limit: %v", err)
	}
	return api.VerifyRequest{Request: api.Request{Reason: cc.String("reason")}, VerifyOptions: colo.VerifyOptions{Limit: int64(limit), Repair: cc.Bool("repair")}}, nil
}

// diskHalf is a line of disk list.
type diskHalf struct {
	Node string `json:"node"`
	colo.DiskStatus
}

func diskList(cc *cli.Context, s *site) error {
	vm := cc.Args().First()
	halves, err := s.Look(cc.Context, vm)
	if err != nil {
		return attempt(err, "disk list", vm, nil)
	}
	list := []diskHalf{}
	for _, h := range halves {
		if !h.Has() {
			continue
		}
		for _, d := range h.Status.Disks {
			list = append(list, diskHalf{h.Node, d})
		}
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, list)
	}
	newest := (&vmReport{Halves: halves}).newest()
	w := table(cc.App.Writer, "DISK", "NODE", "SIZE", "STATE")
	for _, h := range halves {
		if !h.Has() {
			continue
		}
		for _, d := range h.Status.Disks {
			state := halfState(h.Status, d, newest)
			if d.Offline != "" {
				state += ": " + d.Offline
			}
			w.row(d.Name, h.Node, d.Size.String(), state)
		}
	}
	return w.flush()
}

func diskOffline(cc *cli.Context, s *site) error {
	vm, disk := cc.Args().Get(0), cc.Args().Get(1)
	return setDisk(cc, s, "offline", fmt.Sprintf("Take this half of disk %s of %s out of service? The VM is not protected without it.", disk, vm),
		func(ctx context.Context, t *target) error {
			return t.DiskOffline(ctx, vm, disk, api.Request{Reason: cc.String("reason")})
		})
}

func diskOnline(cc *cli.Context, s *site) error {
	vm, disk := cc.Args().Get(0), cc.Args().Get(1)
	return setDisk(cc, s, "online", "", func(ctx context.Context, t *target) error {
		return t.DiskOnline(ctx, vm, disk, api.Request{Reason: cc.String("reason")})
	})
}

func setDisk(cc *cli.Context, s *site, verb, question string, do func(context.Context, *target) error) error {
	vm, disk := cc.Args().Get(0), cc.Args().Get(1)
	t, err := s.pickNode(cc.Args().Get(2))
	if err != nil {
		return err
	}
	if cc.Bool("dry-run") {
		if err := t.CheckDisk(cc.Context, vm, disk, verb == "online"); err != nil {
			return attempt(err, "disk "+verb+" (dry run)", vm, t)
		}
		_, err := fmt.Fprintf(cc.App.Writer, "%s's half of disk %s of %s would go %s\n", t, disk, vm, verb)
		return err
	}
	if question != "" {
		if err := confirm(cc, "", "%s", question); err != nil {
			return err
		}
	}
	if err := do(cc.Context, t); err != nil {
		return attempt(err, "disk "+verb, vm, t)
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, map[string]any{"vm": vm, "disk": disk, "node": t.String(), "online": verb == "online"})
	}
	_, err = fmt.Fprintf(cc.App.Writer, "%s's half of disk %s of %s is %s\n", t, disk, vm, verb)
	return err
}
