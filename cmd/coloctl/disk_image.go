package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/lab"
)

// imageCommands are those of disk that are about images.
func imageCommands(r rules) []*cli.Command {
	format := func() cli.Flag {
		return &cli.StringFlag{Name: "format", Value: "raw", Usage: "`FORMAT` of the new image: raw or qcow2"}
	}
	return []*cli.Command{
		r.remote(&cli.Command{Name: "show", Usage: "show the images of a VM's disks, on the nodes that are reached", Action: withSite(diskShow)}, operands{min: 1, max: 1, usage: "VM"}),
		r.change(&cli.Command{Name: "create", Usage: "make an empty image in a node's storage folder, for a VM's spec to name", Flags: []cli.Flag{
			&cli.StringFlag{Name: "size", Usage: "`SIZE` of the disk, such as 10GiB"}, format(),
		}, Action: withSite(diskCreate)}, operands{min: 2, max: 2, usage: "FILE NODE"}),
		r.change(&cli.Command{Name: "import", Usage: "copy an image of any format to a node's storage folder, for a VM's spec to name", Flags: []cli.Flag{
			format(), &cli.StringFlag{Name: "from-format", Usage: "`FORMAT` of the image that is copied, as qemu-img names it", DefaultText: "what it begins like"},
		}, Action: withSite(diskImport)}, operands{min: 3, max: 3, usage: "IMAGE FILE NODE"}),
		r.operation(&cli.Command{Name: "export", Usage: "copy a disk of a VM, as it is at one moment, to a new file on the node that runs it; it stays protected", Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Value: "qcow2", Usage: "`FORMAT` of the file: qcow2 or raw"},
		}, Action: withSite(action{
			kind: "export", body: exportBody,
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.Export(ctx, vm, body.(api.ExportRequest))
			},
		}.run)}, operands{min: 3, max: 3, usage: "VM DISK FILE"}),
		r.change(&cli.Command{Name: "resize", Usage: "grow a disk of a VM that is switched off", Action: withSite(diskResize)}, operands{min: 3, max: 3, usage: "VM DISK SIZE"}),
	}
}

func exportBody(cc *cli.Context, _ string) (any, error) {
	file := cc.Args().Get(2)
	if err := onNode(file); err != nil {
		return nil, err
	}
	return api.ExportRequest{Request: api.Request{Reason: cc.String("reason")}, ExportOptions: colo.ExportOptions{Disk: cc.Args().Get(1), File: file, Format: cc.String("format")}}, nil
}

func diskCreate(cc *cli.Context, s *site) error {
	if !cc.IsSet("size") {
		return usagef("disk create: which size? give --size, such as 10GiB")
	}
	size, err := colo.ParseSize(cc.String("size"))
	if err != nil {
		return usagef("--size: %v", err)
	}
	if size <= 0 {
		return usagef("--size %s: expected more than 0, such as 10GiB", cc.String("size"))
	}
	return makeImage(cc, s, cc.Args().Get(1), "create", colo.ImageRequest{File: cc.Args().First(), Format: cc.String("format"), Size: size})
}

func diskImport(cc *cli.Context, s *site) error {
	from := cc.Args().First()
	if err := onNode(from); err != nil {
		return err
	}
	return makeImage(cc, s, cc.Args().Get(2), "import", colo.ImageRequest{File: cc.Args().Get(1), Format: cc.String("format"), From: from, FromFormat: cc.String("from-format")})
}

func makeImage(cc *cli.Context, s *site, node, verb string, in colo.ImageRequest) error {
	t, err := s.pickNode(node)
	if err != nil {
		return err
	}
	request := api.ImageRequest{Request: api.Request{Reason: cc.String("reason")}, ImageRequest: in}
	refused := func(verb string, err error) error {
		if in.From != "" && errors.Is(err, colo.ErrImageMissing) {
			return &taskError{verb + " on " + t.Name, err, "the node's daemon reads it: bring the image to " + t.Name}
		}
		return attempt(err, verb, in.File, t)
	}
	if cc.Bool("dry-run") {
		if err := t.CheckImage(cc.Context, request); err != nil {
			return refused("disk "+verb+" (dry run)", err)
		}
		return tellSteps(cc, in.File, t, verb, imageSteps(in))
	}
	made, err := t.MakeImage(cc.Context, request)
	if err != nil {
		return refused("disk "+verb, err)
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, made)
	}
	_, err = fmt.Fprintf(cc.App.Writer, "%s, %s, %s\n", made.Path, made.Format, made.Size)
	return err
}

func imageSteps(in colo.ImageRequest) []string {
	if in.From != "" {
		return []string{fmt.Sprintf("copy %s to %s (%s)", in.From, in.File, in.Format)}
	}
	return []string{fmt.Sprintf("make the image %s (%s, %s)", in.File, in.Format, in.Size)}
}

// diskImage is a line of disk show.
type diskImage struct {
	Node string `json:"node"`
	colo.DiskInfo
}

func diskShow(cc *cli.Context, s *site) error {
	vm := cc.Args().First()
	halves, err := s.Look(cc.Context, vm)
	if err != nil {
		return attempt(err, "disk show", vm, nil)
	}
	list := []diskImage{}
	for _, h := range halves {
		if !h.Has() || h.Target == nil {
			continue
		}
		disks, err := h.Target.Disks(cc.Context, vm)
		if err != nil {
			return attempt(err, "disk show", vm, h.Target)
		}
		for _, d := range disks {
			list = append(list, diskImage{h.Node, d})
		}
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, list)
	}
	w := table(cc.App.Writer, "DISK", "NODE", "SIZE", "ALLOCATED", "FORMAT", "IMAGE", "PROBLEM")
	for _, d := range list {
		kind := d.Format
		if d.Device {
			kind += ", device"
		}
		w.row(d.Name, d.Node, d.Virtual.String(), d.Allocated.String(), kind, d.Path, d.Problem)
	}
	return w.flush()
}

func diskResize(cc *cli.Context, s *site) error {
	vm, disk := cc.Args().Get(0), cc.Args().Get(1)
	size, err := colo.ParseSize(cc.Args().Get(2))
	if err != nil {
		return usagef("%s: %v", cc.Args().Get(2), err)
	}
	t, err := s.anyWith(cc.Context, vm)
	if err != nil {
		return attempt(err, "disk resize", vm, t)
	}
	in := api.ResizeRequest{Request: api.Request{Reason: cc.String("reason")}, Size: size}
	if cc.Bool("dry-run") {
		if err := t.CheckResize(cc.Context, vm, disk, in); err != nil {
			return attempt(err, "disk resize (dry run)", vm, t)
		}
		return tellSteps(cc, vm, t, "resize", []string{"claim the VM for this node alone", fmt.Sprintf("grow the image of %s to %s", disk, size), "store the spec"})
	}
	if err := confirm(cc, "", "Grow disk %s of %s to %s? It can't be made smaller again.", disk, vm, size); err != nil {
		return err
	}
	if err := t.DiskResize(cc.Context, vm, disk, in); err != nil {
		return attempt(err, "disk resize", vm, t)
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, map[string]any{"vm": vm, "disk": disk, "node": t.String(), "size": size})
	}
	_, err = fmt.Fprintf(cc.App.Writer, "disk %s of %s has %s\n", disk, vm, size)
	return err
}
