package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/netcompare"
	"github.com/coloctl/coloctl/qmp"
)

// by is how the documented recipe is followed.
type by struct {
	name string
	// tuned gives it what it does not mention and ours has: no limit of the bandwidth, and quickack routes. What is left of the difference is
	// that the guest is stopped before its memory is copied.
	tuned bool
}

// recipe is two QEMUs run as QEMU's documentation has it (docs/system/qemu-colo: "Primary resume replication").
type recipe struct {
	bed   *bed
	disks [2][]blockrepl.Disk
	dirs  [2]string
	procs [2]*exec.Cmd
	qmps  [2]*qmp.Client
	watch *stopwatch
}

// startRecipe boots the VM on the first node. The caller must Close it.
func (b *bed) startRecipe(ctx context.Context, m machine) (r *recipe, err error) {
	r = &recipe{bed: b}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	spec, err := b.spec(m)
	if err == nil {
		err = spec.Validate() // fills defaults in
	}
	if err != nil {
		return r, err
	}
	for i, node := range lab.NodeNames {
		if err := r.launch(ctx, i, node, spec); err != nil {
			return r, fmt.Errorf("%s: %w", node, err)
		}
	}
	if err := r.prepareStandby(ctx); err != nil {
		return r, err
	}
	r.watch = newStopwatch(r.qmps[0])
	return r, b.awaitGuest(ctx)
}

func (r *recipe) launch(ctx context.Context, i int, node string, spec *colo.Spec) (err error) {
	b, standby := r.bed, i == 1
	if r.dirs[i], err = b.folder(ctx, node, !standby); err != nil {
		return err
	}
	dir := r.dirs[i]
	r.disks[i] = []blockrepl.Disk{{Name: "vda", Path: filepath.Join(dir, "vda.raw"), Format: blockrepl.Raw, Size: diskSize}}
	argv := append(append([]string{}, b.assets.QEMU...), "-name", "guest="+vm, "-M", spec.Machine, "-accel", b.assets.Accel,
		"-m", strconv.FormatInt(int64(spec.Memory)>>20, 10), "-smp", strconv.Itoa(spec.VCPUs), "-cpu", spec.CPU, "-nodefaults", "-no-user-config",
		"-display", "none", "-no-shutdown", "-serial", "file:"+filepath.Join(dir, "serial.log"),
		"-kernel", spec.Boot.Kernel, "-initrd", spec.Boot.Initrd, "-append", spec.Boot.Append)
	argv = append(argv, monitorArgs(dir)...)
	if standby {
		images := blockrepl.Images{QEMUImg: b.assets.QEMUImg}
		if err := errors.Join(images.Create(ctx, r.disks[i][0]), images.CreateOverlays(ctx, dir, r.disks[i])); err != nil {
			return err
		}
		argv = append(append(argv, blockrepl.StandbyArgs(r.disks[i], dir)...), "-incoming", "defer")
	} else {
		argv = append(argv, blockrepl.PrimaryArgs(r.disks[i])...)
	}
	argv = append(append(argv, blockrepl.DeviceArgs(r.disks[i])...), netcompare.Args([]netcompare.NIC{nic()})...)
	if err := b.host(node).EnsureTap(ctx, vm, nic()); err != nil {
		return err
	}
	if !standby {
		if err := b.host(node).Join(ctx, nic()); err != nil {
			return err
		}
	}
	log, err := os.Create(filepath.Join(dir, "qemu.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...) // Close ends it
	cmd.Stdout, cmd.Stderr = log, log
	if err := netns.Start(b.top.Nodes[node].Netns(), cmd); err != nil {
		return err
	}
	r.procs[i] = cmd
	r.qmps[i], err = dialMonitor(ctx, dir)
	return err
}

// endpoint is where the standby listens.
func (r *recipe) endpoint() netcompare.Endpoint {
	return netcompare.Endpoint{Host: r.bed.linkOf(lab.NodeNames[1]).String(), Ports: map[string]netcompare.PortPair{"net0": {Mirror: 9003, Compare: 9004}}}
}

const (
	nbdPort       = 9999
	migrationPort = 9998
)

var coloCapabilities = map[string]bool{"return-path": true, "x-colo": true}

// prepareStandby is the part of the recipe during which the guest runs undisturbed.
func (r *recipe) prepareStandby(ctx context.Context) error {
	c, to := r.qmps[1], r.endpoint()
	if err := netcompare.Listen(ctx, c, []netcompare.NIC{nic()}, to); err != nil {
		return err
	}
	if err := c.MigrateSetCapabilities(ctx, coloCapabilities); err != nil {
		return err
	}
	if err := blockrepl.Export(ctx, c, r.disks[1], blockrepl.Address{Host: to.Host, Port: nbdPort}); err != nil {
		return err
	}
	return c.MigrateIncoming(ctx, qmp.Channel{Inet: &qmp.InetAddr{Host: to.Host, Port: migrationPort}})
}

// protect follows the recipe: the disks are made equal while the guest runs; then it is stopped, the disk is switched, the network comparison
// begins, and migrate copies all of the memory before COLO lets the guest run again. In the recipe's favour the comparison's objects are made
// beforehand and only switched on while the guest is stopped. It returns how long the guest was stopped, after the first RESUME.
func (r *recipe) protect(ctx context.Context, how by) (pause, error) {
	c, to, nics := r.qmps[0], r.endpoint(), []netcompare.NIC{nic()}
	if how.tuned {
		if err := r.tune(ctx); err != nil {
			return pause{}, err
		}
	}
	host := r.bed.host(lab.NodeNames[0])
	mirror := blockrepl.NewMirror(c, r.disks[0], blockrepl.Address{Host: to.Host, Port: nbdPort}, blockrepl.Options{ProbeDial: host.Dial})
	if err := mirror.Sync(ctx); err != nil {
		return pause{}, err
	}
	if err := netcompare.Connect(ctx, c, nics, to, netcompare.Options{SocketDir: r.dirs[0]}); err != nil {
		return pause{}, err
	}
	begun := time.Now()
	if err := c.Stop(ctx); err != nil {
		return pause{}, err
	}
	if err := mirror.Switch(ctx); err != nil {
		return pause{}, err
	}
	if err := netcompare.Enable(ctx, c, nics); err != nil {
		return pause{}, err
	}
	if err := c.MigrateSetCapabilities(ctx, coloCapabilities); err != nil {
		return pause{}, err
	}
	if err := c.Migrate(ctx, qmp.Channel{Inet: &qmp.InetAddr{Host: to.Host, Port: migrationPort}}); err != nil {
		return pause{}, err
	}
	p, err := r.watch.await(ctx, begun, 1)
	if err != nil {
		return pause{}, err
	}
	s, err := c.QueryColoStatus(ctx)
	if err == nil && s.Mode != "primary" {
		err = fmt.Errorf("QEMU's COLO mode is %q after the recipe", s.Mode)
	}
	return p[0], err
}

func (r *recipe) tune(ctx context.Context) error {
	for i, node := range lab.NodeNames {
		if err := r.bed.host(node).QuickAck(ctx, r.bed.linkOf(lab.NodeNames[1-i])); err != nil {
			return err
		}
	}
	return r.qmps[0].MigrateSetParameters(ctx, map[string]any{"max-bandwidth": int64(10e9)})
}

// Close ends both QEMUs and removes their taps and routes.
func (r *recipe) Close() error {
	ctx := context.Background()
	var errs []error
	for i, node := range lab.NodeNames {
		if p := r.procs[i]; p != nil {
			_ = p.Process.Kill() // it may have ended
			_ = p.Wait()
		}
		if c := r.qmps[i]; c != nil {
			_ = c.Close() // its QEMU has gone
		}
		host := r.bed.host(node)
		errs = append(errs, host.DeleteTap(ctx, vm, nic()), host.ClearQuickAck(ctx, r.bed.linkOf(lab.NodeNames[1-i])))
	}
	if r.watch != nil {
		<-r.watch.done
	}
	return errors.Join(errs...)
}
