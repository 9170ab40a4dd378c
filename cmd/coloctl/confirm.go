package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// errExists is returned when something would be overwritten.
var errExists = errors.New("is there already")

// errDeclined is returned when a person did not confirm. Nothing was done.
var errDeclined = errors.New("not confirmed: nothing was done")

// isTerminal says whether a person is at the other end.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// confirm asks a question that must be answered with yes, or, if word is not empty, with that word. With --yes it asks nothing.
func confirm(cc *cli.Context, word, format string, args ...any) error {
	if cc.Bool("yes") {
		return nil
	}
	if !isTerminal(cc.App.Reader) {
		return usagef("%s asks for a confirmation, and there is no terminal: give --yes", cc.Command.HelpName)
	}
	question, want := fmt.Sprintf(format, args...), word
	if word == "" {
		question += " [y/N] "
	} else {
		question += fmt.Sprintf("\nType %s to go on: ", word)
	}
	fmt.Fprint(cc.App.ErrWriter, question)
	answers := make(chan string, 1)
	go func() { // ends with the line, or with the program
		line, err := bufio.NewReader(cc.App.Reader).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			line = ""
		}
		answers <- strings.TrimSpace(line)
	}()
	select {
	case got := <-answers:
		if got == want && word != "" || word == "" && (strings.EqualFold(got, "y") || strings.EqualFold(got, "yes")) {
			return nil
		}
		return errDeclined
	case <-cc.Done():
		return cc.Err()
	}
}
