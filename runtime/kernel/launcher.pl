# Starts programs for a larger process: to fork that one takes a millisecond for every ten megabytes that it holds, and
# it does nothing else meanwhile. launcher.ts speaks to this; perl is part of every Debian and Ubuntu.
#
# A frame is its length (32 bits, big-endian), a letter, the number of a process, and what follows by letter:
#   in   R cwd env argv descriptors input   start a program; each string has its length before it, lists are joined by
#                                           NUL; descriptors: `0i 1o 2o`; input: all that descriptor 0 gets
#        W fd bytes                         write to a descriptor
#        K signal                           send a signal
#        F                                  forget it: close its pipes, tell nothing more of it
#   out  P pid                              it runs; pid 0: it could not be started, and a second number says why (errno)
#        O fd bytes                         what it wrote; nothing = nobody has the descriptor open any more
#        X status                           it has ended, as waitpid(2) tells it, and so has what it wrote
# The end of the input is the end of this program; what it has started goes on.
use strict;
use warnings;
use POSIX qw(dup2 WNOHANG);

use constant { CHUNK => 65536, F_DUPFD_CLOEXEC => 1030, BEYOND => 64, PAUSE_MIN => 0.001, PAUSE_MAX => 0.1 };

# By number: { pid, status, in => { fd => [handle, bytes to write] }, out => { fd => handle } }
my %processes;
my %numbers;
my $received = '';
my $pause = PAUSE_MIN;

$SIG{PIPE} = 'IGNORE';

sub answer {
  my ($letter, $number, $rest) = @_;
  my $frame = pack 'N/a', pack('a N a*', $letter, $number, $rest);
  while (length $frame) {
    my $count = syswrite STDOUT, $frame;
    exit 0 unless defined $count;
    substr $frame, 0, $count, '';
  }
}

sub failed {
  my ($number, $errno) = @_;
  answer('P', $number, pack 'N N', 0, $errno);
}

sub start {
  my ($number, $cwd, $env, $argv, $descriptors, $input) = @_;
  my (%in, %out, %inner);
  for (split / /, $descriptors) {
    my ($fd, $way) = /^(\d+)([io])$/ or next;
    pipe my $reader, my $writer or return failed($number, $! + 0);
    if ($way eq 'o') { $out{$fd} = $reader; $inner{$fd} = $writer; next }
    $writer->blocking(0);
    $in{$fd} = [$writer, ''];
    $inner{$fd} = $reader;
  }
  # An exec that succeeds closes it.
  pipe my $failure, my $fail or return failed($number, $! + 0);
  my $pid = fork;
  return failed($number, $! + 0) unless defined $pid;
  become($cwd, $env, $argv, $fail, \%inner) if $pid == 0;
  close $fail;
  close $_ for values %inner;
  if (sysread $failure, my $errno, 4) {
    waitpid $pid, 0;
    return failed($number, unpack 'N', $errno);
  }
  $processes{$number} = { pid => $pid, in => \%in, out => \%out };
  $numbers{$pid} = $number;
  answer('P', $number, pack 'N', $pid);
  feed($number, 0, $input) if exists $in{0};
}

# In the child. Never returns.
sub become {
  my ($cwd, $env, $argv, $fail, $inner) = @_;
  no warnings 'exec';
  setpgrp 0, 0;
  $SIG{PIPE} = 'DEFAULT';
  # First out of the way of the numbers that they shall have.
  my %moved = map { $_ => fcntl $inner->{$_}, F_DUPFD_CLOEXEC, BEYOND } keys %$inner;
  my $told = fcntl $fail, F_DUPFD_CLOEXEC, BEYOND;
  my $nothing = POSIX::open('/dev/null', POSIX::O_RDWR());
  dup2($moved{$_} // $nothing, $_) for 0 .. 2;
  dup2($moved{$_}, $_) for grep { $_ > 2 } keys %moved;
  %ENV = map { /^([^=]+)=(.*)$/s ? ($1 => $2) : () } split /\0/, $env;
  my @words = split /\0/, $argv, -1;
  exec { $words[0] } @words if $cwd eq '' || chdir $cwd;
  POSIX::write($told, pack('N', $! + 0), 4);
  POSIX::_exit(127);
}

# Writes what the pipe takes now; the rest when it takes more. Descriptor 0 gets everything at once, and is closed then.
sub feed {
  my ($number, $fd, $bytes) = @_;
  my $pipe = $processes{$number}{in}{$fd} or return;
  $pipe->[1] .= $bytes;
  while (length $pipe->[1]) {
    my $count = syswrite $pipe->[0], $pipe->[1];
    if (defined $count) { substr $pipe->[1], 0, $count, '' }
    elsif ($!{EAGAIN}) { return }
    else { last }
  }
  $pipe->[1] = '';
  delete $processes{$number}{in}{$fd} if $fd == 0;
}

sub obey {
  my ($letter, $number, $rest) = unpack 'a N a*', shift;
  return start($number, unpack 'N/a N/a N/a N/a N/a', $rest) if $letter eq 'R';
  my $process = $processes{$number} or return;
  if ($letter eq 'W') { feed($number, unpack 'N a*', $rest) }
  elsif ($letter eq 'K') { kill unpack('N', $rest), $process->{pid} unless defined $process->{status} }
  elsif ($letter eq 'F') { delete $processes{$number} }
}

sub reap {
  while ((my $pid = waitpid -1, WNOHANG) > 0) {
    my $number = delete $numbers{$pid};
    $processes{$number}{status} = $? if defined $number && $processes{$number};
  }
  for my $number (keys %processes) {
    my $process = $processes{$number};
    next if %{ $process->{out} } || !defined $process->{status};
    answer('X', $number, pack 'N', $process->{status});
    delete $processes{$number};
  }
}

for (;;) {
  my ($readable, $writable) = ('', '');
  my (%sources, %sinks);
  vec($readable, fileno STDIN, 1) = 1;
  my $is_ending = 0;
  for my $number (keys %processes) {
    my $process = $processes{$number};
    $is_ending ||= !%{ $process->{out} };
    while (my ($fd, $handle) = each %{ $process->{out} }) {
      vec($readable, fileno $handle, 1) = 1;
      $sources{ fileno $handle } = [$number, $fd, $handle];
    }
    while (my ($fd, $pipe) = each %{ $process->{in} }) {
      next unless length $pipe->[1];
      vec($writable, fileno $pipe->[0], 1) = 1;
      $sinks{ fileno $pipe->[0] } = [$number, $fd];
    }
  }
  # What has closed its output ends in a moment, mostly, and nothing else would tell.
  $pause = $is_ending ? $pause * 2 : PAUSE_MIN;
  $pause = PAUSE_MAX if $pause > PAUSE_MAX;
  select $readable, $writable, undef, $is_ending ? $pause : undef;
  for my $descriptor (grep { vec $readable, $_, 1 } keys %sources) {
    my ($number, $fd, $handle) = @{ $sources{$descriptor} };
    my $count = sysread $handle, my $bytes, CHUNK;
    answer('O', $number, pack 'N a*', $fd, $bytes);
    delete $processes{$number}{out}{$fd} unless $count;
  }
  for my $descriptor (grep { vec $writable, $_, 1 } keys %sinks) { feed(@{ $sinks{$descriptor} }, '') }
  if (vec $readable, fileno STDIN, 1) {
    exit 0 unless sysread STDIN, $received, CHUNK, length $received;
    while (length $received >= 4 && length $received >= 4 + unpack 'N', $received) {
      obey(unpack 'N/a', $received);
      substr $received, 0, 4 + unpack('N', $received), '';
    }
  }
  reap();
}
