package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/lab"
)

// downGrace is how long a lab may take to end by itself.
const downGrace = 15 * time.Second

func labCommand(r rules) *cli.Command {
	name := func() cli.Flag {
		return &cli.StringFlag{Name: "name", Value: "lab", Usage: "`NAME` of the lab"}
	}
	return group(&cli.Command{Name: "lab", Usage: "two nodes with their daemons, an arbiter and a client on this machine", Subcommands: []*cli.Command{
		r.leaf(&cli.Command{Name: "run", Usage: "run a scenario and measure what a client notices", Flags: runFlags(), Action: labRun},
			operands{min: 1, max: 1, usage: "SCENARIO"}),
		r.leaf(&cli.Command{Name: "list", Usage: "list the scenarios", Action: labList}, operands{}),
		r.leaf(&cli.Command{Name: "up", Usage: "start a lab that stays, with a protected VM", Flags: labFlags(
			name(), &cli.BoolFlag{Name: "alone", Usage: "don't protect the VM"},
		), Action: labUp}, operands{}),
		r.leaf(&cli.Command{Name: "status", Usage: "show a lab that is up", Flags: []cli.Flag{name()}, Action: labStatus}, operands{}),
		r.leaf(&cli.Command{Name: "shell", Usage: "run a command, or a shell, on a node or the client of a lab", Flags: []cli.Flag{name()}, Action: labShell},
			operands{min: 1, max: -1, usage: "n1|n2|witness|client [COMMAND...]", command: true}),
		r.leaf(&cli.Command{Name: "down", Usage: "end a lab and remove all of it", Flags: []cli.Flag{name()}, Action: labDown}, operands{}),
		r.leaf(&cli.Command{Name: "provision", Usage: "find or fetch QEMU and the guest's kernel", Action: labProvision}, operands{}),
		r.leaf(&cli.Command{Name: "guest", Usage: "write the lab's guest, with a VM's spec for it, for nodes of one's own; the same on both", Flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Usage: "`FOLDER` for the files", TakesFile: true},
			&cli.StringFlag{Name: "address", Usage: "of the guest on the bridge, as `ADDRESS/BITS` (IPv4)"},
			&cli.StringFlag{Name: "bridge", Value: "br0", Usage: "`BRIDGE` of its NIC"},
			&cli.StringFlag{Name: "name", Value: "web", Usage: "`NAME` of the VM"},
		}, Action: labGuest}, operands{}),
	}})
}

func labList(cc *cli.Context) error {
	type entry struct {
		Name    string `json:"name"`
		Summary string `json:"summary"`
	}
	var all []entry
	for _, s := range lab.Scenarios {
		all = append(all, entry{s.Name, s.Summary})
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, all)
	}
	w := table(cc.App.Writer)
	for _, s := range all {
		w.row(s.Name, s.Summary)
	}
	return w.flush()
}

func labGuest(cc *cli.Context) error {
	address, err := netip.ParsePrefix(cc.String("address"))
	if err != nil || !address.Addr().Is4() {
		return usagef("--address %s: expected an IPv4 address with its network's bits, for example 192.0.2.50/24", cc.String("address"))
	}
	if cc.String("dir") == "" {
		return usagef("lab guest: which folder? give --dir")
	}
	files, err := lab.WriteGuest(cc.Context, lab.GuestOptions{Dir: cc.String("dir"), Name: cc.String("name"), Bridge: cc.String("bridge"), Address: address, Out: cc.App.ErrWriter})
	if err != nil {
		return err
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, files)
	}
	_, err = fmt.Fprintf(cc.App.Writer, "%s\n%s\n%s\n%s\n", files.Kernel, files.Initrd, files.Disk, files.Spec)
	return err
}

func labProvision(cc *cli.Context) error {
	assets, err := lab.PrepareAssets(cc.Context, cc.App.ErrWriter)
	if err != nil {
		return err
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, assets)
	}
	w := table(cc.App.Writer, "QEMU", fmt.Sprintf("%s, %s, %s", assets.QEMU[0], assets.Version, assets.Accel))
	w.row("qemu-img", assets.QEMUImg[0])
	w.row("kernel", assets.Kernel)
	w.row("guest", assets.Initrd)
	return w.flush()
}

// labUp runs twice: as typed, and as the worker inside the lab that it has started.
func labUp(cc *cli.Context) error {
	if err := checkLabFlags(cc); err != nil {
		return err
	}
	if lab.Inside() {
		err := keepLab(cc)
		if errors.Is(err, lab.ErrInterrupted) {
			return nil // a signal is how init systems end what stays
		}
		return err
	}
	ctx, name := cc.Context, cc.String("name")
	if _, err := lab.NamedFolder(name); err != nil {
		return err
	}
	env, err := prepare(ctx, cc, nil)
	if err != nil {
		return err
	}
	f, err := lab.MakeFolder(name)
	if err != nil {
		return err
	}
	err = lab.Start(ctx, f, lab.StartOptions{
		Args: os.Args[1:], Env: env, Detach: true, Log: filepath.Join(f.Path, lab.LogName), Tell: cc.App.ErrWriter,
	})
	if err != nil {
		return errors.Join(err, f.Remove())
	}
	if err := f.Release(); err != nil {
		return err
	}
	return labStatus(cc)
}

// prepare does what needs the machine's network and is the same for all labs.
func prepare(ctx context.Context, cc *cli.Context, s *lab.Scenario) ([]string, error) {
	lab.Sweep()
	if err := lab.Preflight(ctx); err != nil {
		return nil, err
	}
	assets, err := lab.PrepareAssets(ctx, cc.App.ErrWriter)
	if err != nil {
		return nil, err
	}
	if err := assets.FindDaemon(ctx, labOptions(cc, nil, ""), s); err != nil {
		return nil, err
	}
	env, err := assets.Env()
	return []string{env}, err
}

// labFlags are those of all commands that make a lab.
func labFlags(more ...cli.Flag) []cli.Flag {
	return append(more,
		&cli.IntFlag{Name: "links", Value: 1, Usage: "replication links between the nodes"},
		&cli.IntFlag{Name: "vcpus", Value: 1, Usage: "processors of the guest"},
		&cli.StringFlag{Name: "arbiter", Value: config.ArbiterWitness, Usage: "`KIND` of arbiter: witness, or etcd, which must be installed"},
		&cli.StringFlag{Name: "launcher", Value: config.LauncherColod, Usage: "`WHO` starts QEMU: colod, or libvirt, whose daemon must be installed"},
		&cli.StringFlag{Name: "comparer", Value: colo.ComparerStream, Usage: "`WHO` compares what the copies say: stream, or builtin, which is QEMU's"},
		&cli.DurationFlag{Name: "hold-down", Usage: "how long a node that has returned must be well before a VM is protected by it", DefaultText: "the daemons'"})
}

func checkLabFlags(cc *cli.Context) error {
	return errors.Join(positive("--links", cc.Int("links")), positive("--vcpus", cc.Int("vcpus")))
}

func labOptions(cc *cli.Context, assets *lab.Assets, dir string) lab.Options {
	return lab.Options{Assets: assets, Arbiter: cc.String("arbiter"), Launcher: cc.String("launcher"), Comparer: cc.String("comparer"), Links: cc.Int("links"), VCPUs: cc.Int("vcpus"), HoldDown: cc.Duration("hold-down"), Dir: dir}
}

// keepLab is the worker of a lab that stays up. It answers on its socket from the beginning: who asks or wants it down needn't wait until it is.
func keepLab(cc *cli.Context) (err error) {
	said := false
	defer func() {
		if err != nil && !said {
			err = errors.Join(err, lab.Unready(err))
		}
	}()
	assets, err := lab.InheritedAssets()
	if err != nil {
		return err
	}
	tell, o := lab.NewTeller(lab.Starter, false), labOptions(cc, assets, lab.Root)
	o.Say = tell.Say
	c, ctx, err := lab.OpenControl(cc.Context, lab.ControlPath(), tell.Say)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	var l *lab.Lab
	err = c.Step(ctx, "the networks and the daemons begin", lab.UpLimit, func(ctx context.Context) (err error) {
		l, err = lab.New(ctx, o)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	err = c.Step(ctx, "a VM on "+lab.NodeNames[0]+", alone: its guest boots", lab.UpLimit, func(ctx context.Context) error { return l.Boot(ctx, lab.NodeNames[0]) })
	if err != nil {
		return err
	}
	if !cc.Bool("alone") {
		if err := c.Step(ctx, "its guest answers; now it is protected", lab.UpLimit, l.Protect); err != nil {
			return err
		}
	}
	c.Up(l)
	said = true
	if err := lab.Ready(); err != nil {
		return err
	}
	return c.Wait(ctx)
}

// openLab finds a lab to look into.
func openLab(name string) (*lab.Handle, error) {
	h, err := lab.OpenLab(name)
	if errors.Is(err, lab.ErrNoLab) {
		err = fmt.Errorf("%w; start it with: coloctl lab up --name %s", err, name)
	}
	return h, err
}

func labStatus(cc *cli.Context) error {
	h, err := openLab(cc.String("name"))
	if err != nil {
		return err
	}
	s, err := h.Status(cc.Context)
	if err != nil {
		return err
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, s)
	}
	w := table(cc.App.Writer, "HOST", "VM", "PROTECTED", "WHY")
	fmt.Fprintln(cc.App.Writer, hang(fmt.Sprintf("lab %s, process %d, folder %s, guest %s", s.Name, s.PID, s.Folder, s.Guest), 2, w.width))
	for _, n := range s.Nodes {
		switch {
		case n.State == "" && n.Reason == "":
			w.row(n.Name, "-", "-", "-")
		case n.Protected:
			w.row(n.Name, n.State, "yes", n.Why)
		default:
			w.row(n.Name, n.State, "no: "+n.Reason, n.Why)
		}
	}
	return w.flush()
}

func labShell(cc *cli.Context) error {
	h, err := openLab(cc.String("name"))
	if err != nil {
		return err
	}
	s, err := h.Status(cc.Context)
	if err != nil {
		return err
	}
	host, command := cc.Args().First(), cc.Args().Tail()
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 {
		command = []string{"/bin/sh"}
		if sh := os.Getenv("SHELL"); sh != "" {
			command[0] = sh
		}
	}
	args, err := s.ShellArgs(host, command)
	if err != nil {
		return &usageError{err}
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("%w: it is in the package util-linux", err)
	}
	// The command takes this process's place, so it has the terminal, its signals and its exit code.
	return syscall.Exec(path, args, s.ShellEnv(host))
}

func labDown(cc *cli.Context) error {
	name := cc.String("name")
	h, err := lab.OpenLab(name)
	if others := lab.UpLabs(); errors.Is(err, lab.ErrNoLab) && len(others) > 0 {
		err = fmt.Errorf("%w; up: %s", err, strings.Join(others, ", "))
	}
	if err != nil {
		return err
	}
	if err := h.Down(cc.Context, downGrace); err != nil {
		return err
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, map[string]any{"name": name, "up": false})
	}
	return nil
}
