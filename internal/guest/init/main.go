// Command init is the first and only process of the lab's guest: it loads the
// kernel modules of its initramfs, brings the network up, mounts the disk,
// serves (package service) and shuts the machine down in good order when
// asked to over HTTP or by the power button.
//
// The kernel's command line configures it:
//
//	colo.ip=10.77.0.10/24   address of eth0; colo.ip1 of eth1 and so on
//	colo.gw=10.77.0.1       default gateway
//
// /dev/vda, if there is one, is mounted as ext4 on /data; the service's log
// lives there. /dev/vdb, if there is one, is written to as it is. When all services accept clients it writes one line to the
// console: GUEST-READY and the boot id. As process 1 it must not end: after an
// error it writes GUEST-FAILED with the reason and switches the machine off.
//
// It is built static, without cgo. The random ports of the FTP library would
// make the replies of two copies differ, so math/rand is not seeded:
//
//go:debug randautoseed=0
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/guest/service"
)

const dataDir = "/data"

func main() {
	// Every collection walks and dirties memory that COLO then has to copy,
	// so collect seldom, bounded for the smallest guest.
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(96 << 20)

	action, err := run()
	if err != nil {
		say("GUEST-FAILED " + err.Error())
		action = unix.LINUX_REBOOT_CMD_POWER_OFF
	}
	unix.Sync()
	if err := unix.Unmount(dataDir, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		// EINVAL: nothing is mounted there.
		say("GUEST-FAILED unmount: " + err.Error())
	}
	err = unix.Reboot(action)
	say(fmt.Sprintf("GUEST-FAILED reboot: %v", err))
	select {}
}

// say writes a line to the console.
func say(line string) {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString("\n" + line + "\n")
}

// run serves until the machine is to go down and returns how: a command for
// reboot(2).
func run() (int, error) {
	if err := mountKernel(); err != nil {
		return 0, err
	}
	if err := loadModules("/modules"); err != nil {
		return 0, err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return 0, err
	}
	if err := setUpNetwork(parseCommandLine(string(cmdline))); err != nil {
		return 0, err
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0, err
	}
	counter, err := openDisk()
	if err != nil {
		return 0, err
	}
	raw, err := service.OpenRawDisk("/dev/vdb")
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) && !errors.Is(err, unix.EROFS) { // a read-only one is not written to
		return 0, err
	}
	return serve(strings.TrimSpace(string(bootID)), counter, raw)
}

// openDisk mounts the first disk and opens the counter on it. Without a disk
// it returns nil.
func openDisk() (*service.Counter, error) {
	switch err := unix.Mount("/dev/vda", dataDir, "ext4", unix.MS_NOATIME, ""); {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("mount /dev/vda: %w", err)
	}
	return service.OpenCounter(filepath.Join(dataDir, "counter.log"))
}

func serve(bootID string, counter *service.Counter, raw *service.RawDisk) (int, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	down := make(chan int, 1)
	ask := func(action int) func() {
		return func() {
			select {
			case down <- action:
			default: // already going down
			}
		}
	}
	web := &http.Server{
		ReadHeaderTimeout: 30 * time.Second,
		Handler: (&service.HTTP{
			BootID:   bootID,
			Started:  time.Now(),
			Counter:  counter,
			Raw:      raw,
			Devices:  "/dev",
			Reboot:   ask(unix.LINUX_REBOOT_CMD_RESTART),
			PowerOff: ask(unix.LINUX_REBOOT_CMD_POWER_OFF),
		}).Handler(),
	}
	var lc net.ListenConfig
	httpL, err1 := lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", service.PortHTTP))
	ftpL, err2 := lc.Listen(ctx, "tcp4", fmt.Sprintf(":%d", service.PortFTP))
	echoL, err3 := lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", service.PortEcho))
	udp, err4 := lc.ListenPacket(ctx, "udp4", fmt.Sprintf(":%d", service.PortEcho))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return 0, err
	}
	if err := watchPowerButton(ask(unix.LINUX_REBOOT_CMD_POWER_OFF)); err != nil {
		return 0, err
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return service.ServeFTP(ctx, ftpL, service.PassiveFirst, service.PassiveLast) })
	group.Go(func() error { return service.ServeEcho(ctx, echoL) })
	group.Go(func() error { return service.ServeEchoUDP(ctx, udp) })
	group.Go(func() error {
		if err := web.Serve(httpL); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	var action int
	group.Go(func() error {
		select {
		case action = <-down:
		case <-ctx.Done():
		}
		cancel()
		// The answer to the request that asked for this is still on its way.
		grace, cancelGrace := context.WithTimeout(context.Background(), time.Second)
		defer cancelGrace()
		if web.Shutdown(grace) != nil {
			return web.Close()
		}
		return nil
	})
	say("GUEST-READY " + bootID)
	err := group.Wait()
	if counter != nil {
		err = errors.Join(err, counter.Close())
	}
	return action, err
}
