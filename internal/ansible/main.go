package ansible

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// maxParams bounds the file with the parameters.
const maxParams = 4 << 20

// Main is the module's main: args are those of the command line without the program's name. It returns the exit code.
func Main(args []string, version string, stdout, stderr io.Writer) int {
	if len(args) == 1 && (args[0] == "--version" || args[0] == "version") {
		_, _ = fmt.Fprintln(stdout, "colo_vm "+version)
		return 0
	}
	if len(args) != 1 || len(args[0]) > 0 && args[0][0] == '-' {
		_, _ = fmt.Fprintln(stderr, "colo_vm is a module of Ansible, which runs it as: colo_vm FILE\nFILE holds the task's parameters in JSON; they are described by: ansible-doc coloctl.coloctl.colo_vm")
		return 2
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(end)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case s := <-end:
			cancel(fmt.Errorf("%w: %s", errInterrupted, s))
		case <-ctx.Done():
		}
	}()
	r := RunFile(ctx, args[0])
	cancel(nil)
	<-watched
	if err := json.NewEncoder(stdout).Encode(r); err != nil {
		_, _ = fmt.Fprintln(stderr, "colo_vm:", err)
		return 1
	}
	if r.Failed {
		return 1
	}
	return 0
}

// RunFile is [Run] with the parameters in a file. A panic becomes a reply: Ansible shows nothing of a module that dies.
func RunFile(ctx context.Context, file string) (r *Reply) {
	defer func() {
		if p := recover(); p != nil {
			r = &Reply{Failed: true, RC: 1, Msg: fmt.Sprintf("a bug in colo_vm: %v; see how the VM stands: coloctl status", p)}
		}
	}()
	data, err := readFile(file)
	if err != nil {
		return &Reply{Failed: true, RC: 1, Msg: "read the parameters: " + err.Error()}
	}
	return Run(ctx, data)
}

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxParams+1))
	if err == nil && len(data) > maxParams {
		err = fmt.Errorf("%s is over %d bytes", file, maxParams)
	}
	return data, err
}
