package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// Deliver gives a bundle to a host over ssh, whose coloctl takes it over. The bundle goes through standard input: nothing secret is in a command line or left in a
// file there. target is as ssh takes it; what the host says goes to out.
func Deliver(ctx context.Context, target string, b *Bundle, out io.Writer) error {
	if strings.HasPrefix(target, "-") {
		return fmt.Errorf("ssh: %q is not a host", target)
	}
	text, err := b.Tar()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", target, "coloctl setup join --yes - 2>&1")
	cmd.Stdin = bytes.NewReader(text)
	var said bytes.Buffer
	all := io.MultiWriter(out, &said)
	cmd.Stdout, cmd.Stderr = all, all
	err = cmd.Run()
	var ended *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ended) && ended.ExitCode() == 127:
		return fmt.Errorf("ssh %s: there is no coloctl there: install the package", target)
	case errors.As(err, &ended) && ended.ExitCode() == 255:
		return fmt.Errorf("ssh %s: %s", target, lastLine(said.String()))
	}
	return fmt.Errorf("ssh %s: coloctl setup join: %w", target, err)
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
